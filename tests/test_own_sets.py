"Guards of `own_sets`: what people bring is read as they keep it, or refused by file and row."

import json
from pathlib import Path

import pytest
from pictures import picture, places  # noqa: F401 # a fixture

from vlm_counting.datasets import load_dataset
from vlm_counting.own_sets import plural_label


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        picture(tmp_path / "set" / f"{number}.png", number)
    return tmp_path / "set"


def table(folder: Path, text: str, name: str = "set.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def told(samples):
    return [(sample.question, sample.target) for sample in samples]


CATS = [("How many cats are there?", 3), ("How many dogs are there?", 0)]


@pytest.mark.parametrize(
    "name, text, encoding",
    [
        ("a.csv", "image,label,count\n0.png,cats,3\n1.png,dogs,0\n", "utf-8"),
        ("a.CSV", "image,label,count\r\n0.png,cats,3.0\r\n\r\n1.png,dogs,0.0\r\n", "utf-8-sig"),
        ("a.csv", "Image;Label;Answer\n0.png;cats; 3 \n1.png;dogs;0\n", "utf-8"),
        ("a.csv", "file_name\tlabel\ttarget\n0.png\tcats\t3\n1.png\tdogs\t0\n", "utf-16"),
        ("a.tsv", 'img\tlabel\tnumber\n0.png\t"cats"\t3\n1.png\tdogs\t0', "utf-8"),
        ("a.csv", 'path,query,answer\n0.png,How many cats are there?,3\n1.png,How many dogs are there?,0', "utf-8"),
    ],
)  # fmt: skip
def test_spreadsheets_as_programs_write_them(folder, name, text, encoding):
    path = table(folder, text, name, encoding)
    samples = load_dataset(path)
    assert told(samples) == CATS and [sample.uid for sample in samples] == ["a/0", "a/1"]
    assert told(load_dataset(folder)) == CATS  # the only list in it


def test_columns_of_a_spreadsheet_become_factors_of_their_kind(folder):
    text = "image,question,count,size,shade,zip,note,layout\n"
    text += "0.png,How many?,1,3.5,0.5,007,,4\n1.png,How many?,2,1,2,12,x,5\n"
    one, two = load_dataset(table(folder, text))
    assert one.factors == {"own_size": 3.5, "shade": 0.5, "zip": "007", "layout": 4}
    assert two.factors == {"own_size": 1.0, "shade": 2.0, "zip": "12", "note": "x", "layout": 5}


@pytest.mark.parametrize(
    "text, message",
    [
        ("image,label,count\n0.png,cats,three\n", "set.csv, line 2: id 'set/0': the answer is 'three' (str)"),
        ("image,label,count\n0.png,cats,3.5\n", "line 2: id 'set/0': the answer is 3.5 (float)"),
        ("image,label,count\n0.png,cats,-2\n", "the answer is -2"),
        ("image,label,count\n0.png,cats,\n", "line 2: id 'set/0': the answer is None"),
        ("image,label,count\n0.png,cats\n", "line 2: it has 2 cells, and the first line names 3 columns"),
        ("image,label,count\n0.png,7,3\n", "its label is '7', a number"),
        ("image,label,count\n0.png,,3\n", "its label is None"),
        ("image,label,count\ngone.png,cats,3\n", "'set/0': there is no image"),
        ("image,label,count\n", "there is no sample in it"),
        ("", "there is no sample in it"),
        ("image,label,count,count\n0.png,cats,3,3\n", "the column 'count' is there 2 times"),
        ("image,,count\n0.png,cats,3\n", "the column '' is there 1 times"),
        ("image,label,howmany\n0.png,cats,3\n", "has no column for the target"),
        ("image,count\n0.png,3\n", "has no column for the question (any of question, query, user, label)"),
        ('image,label,count\n0.png,"cats,3\n', "line"),
        ("uid,image,label,count\na,0.png,cats,3\na,1.png,cats,3\n", "id 'a' occurs 2 times"),
    ],
)
def test_a_bad_spreadsheet_is_refused_by_line(folder, text, message):
    with pytest.raises(ValueError) as caught:
        load_dataset(table(folder, text))
    assert message in str(caught.value)


def test_columns_are_named_in_either_form(folder):
    text = "pic,what,howmany\n0.png,cats,3\n1.png,dogs,0\n"
    path = table(folder, text)
    for columns in ({"image": "pic", "label": "what", "target": "howmany"}, "image:pic, label:what,target:howmany"):
        assert told(load_dataset(path, columns=columns)) == CATS
    for columns, message in {
        "image:pic,label:what,target:many": "No column named 'many'",
        "tagret:howmany": "Did you mean 'target'",
        "howmany": "expected field:column",
        "target:a,target:b": "each field once",
    }.items():
        with pytest.raises((ValueError, KeyError), match=message):
            load_dataset(path, columns=columns)
    for own in ("balanced", folder):
        with pytest.raises((ValueError, KeyError)):
            load_dataset(own, limit=1, columns="target:nothing")
    with pytest.raises(ValueError, match="columns is a list"):
        load_dataset(path, columns=["target"])


def test_lines_of_json_in_other_words(folder):
    rows = [
        {"img": "0.png", "question": "How many?", "answer": "3", "source": "web", "weights": [1, 2], "gone": None},
        {"img": "1.png", "question": "How many?", "answer": 2.0, "factors": {"source": "me"}, "source": "you"},
    ]
    path = table(folder, "\n".join(map(json.dumps, rows)), "mine.jsonl")
    one, two = load_dataset(path)
    assert (one.uid, one.target, one.factors) == ("mine/0", 3, {"source": "web", "weights": [1, 2]})
    assert (two.target, two.factors) == (2, {"source": "me", "own_source": "you"})


@pytest.mark.parametrize("entries", [
    [{"question": "How many cats?", "answer": "3"}, {"question": "How many dogs?", "answer": 1}],
    {"question": ["How many cats?", "How many dogs?"], "answer": [3, 1]},
    [{"user": "How many cats?", "assistant": "3."}, {"user": "How many dogs?", "assistant": "1."}],
])  # fmt: skip
def test_several_questions_in_a_row(folder, entries):
    path = table(folder, json.dumps({"image": "0.png", "qa": entries, "source": "web"}) + "\n", "mine.jsonl")
    one, two = load_dataset(path)
    assert told([one, two]) == [("How many cats?", 3), ("How many dogs?", 1)]
    assert one.factors["pair"] == two.factors["pair"] == "mine/0" and one.factors["source"] == "web"
    assert one.uid != two.uid and one.image == two.image


def test_nested_tables_of_the_hub(tmp_path):
    import datasets

    image = {"bytes": picture(tmp_path / "0.png").read_bytes(), "path": None}
    text, image_kind = datasets.Value("string"), datasets.Image()
    qa = [
        {"question": "How many cats?", "answer": "3", "issimple": True},
        {"question": "How many?", "answer": "1", "issimple": False},
    ]
    tally = datasets.Features(
        {
            "image": image_kind,
            "qa": datasets.List({"question": text, "answer": text, "issimple": datasets.Value("bool")}),
        }
    )
    several = datasets.Features(
        {"images": datasets.List(image_kind), "texts": datasets.List({"user": text, "assistant": text})}
    )
    tables = {
        "tally": datasets.Dataset.from_dict({"image": [image] * 2, "qa": [qa, qa[:1]]}, features=tally),
        "cauldron": datasets.Dataset.from_dict(
            {"images": [[image]] * 2, "texts": [[{"user": "How many?", "assistant": f"{n}."}] for n in (3, 4)]},
            features=several,
        ),
    }
    for name, made in tables.items():
        made.to_parquet(tmp_path / f"{name}.parquet")
    samples = load_dataset(tmp_path / "tally.parquet")
    assert [sample.target for sample in samples] == [3, 1, 3] and len({sample.uid for sample in samples}) == 3
    assert samples[0].factors["pair"] == samples[1].factors["pair"] and "pair" not in samples[2].factors
    assert samples[1].factors["issimple"] is False
    assert told(load_dataset(tmp_path / "cauldron.parquet")) == [("How many?", 3), ("How many?", 4)]
    renamed = "question:qa.question,target:qa.answer"
    assert told(load_dataset(tmp_path / "tally.parquet", columns=renamed)) == told(samples)


def test_a_folder_for_each_count(tmp_path):
    shots = tmp_path / "shots"
    for name in ("0_apples/a.jpg", "3_apples/b.jpg", "3_apples/.hidden.jpg", "10 red cars/c.PNG", "dogs/2/d.webp"):
        picture(shots / name)
    (shots / "3_apples" / "note.txt").write_text("mine")
    samples = load_dataset(shots)
    assert told(samples) == [
        ("How many apples are there?", 0), ("How many apples are there?", 3),
        ("How many red cars are there?", 10), ("How many dogs are there?", 2),
    ]  # fmt: skip
    assert samples[0].uid == "shots/0_apples-a.jpg"
    picture(shots / "7" / "e.jpg")
    with pytest.raises(ValueError, match="7/e.jpg: no folder says of what there are 7. Say it: question="):
        load_dataset(shots)
    assert len(load_dataset(shots, question="How many things?")) == 5
    picture(shots / "loose.jpg")
    with pytest.raises(ValueError, match="loose.jpg lies in 0 folders named after a count"):
        load_dataset(shots, question="How many things?")


def test_parts_of_a_folder(tmp_path):
    for name in ("train/1/a.jpg", "train/2/b.jpg", "test/1/c.jpg"):
        picture(tmp_path / "parts" / name)
    ask = {"question": "How many dogs?"}
    assert len(load_dataset(tmp_path / "parts", **ask)) == 1 == len(load_dataset(f"{tmp_path / 'parts'}@test", **ask))
    assert len(load_dataset(f"{tmp_path / 'parts'}@train+test", **ask)) == 3
    (tmp_path / "parts" / "test").rename(tmp_path / "parts" / "valid")
    with pytest.raises(ValueError, match="Say which, e.g. "):
        load_dataset(tmp_path / "parts", **ask)


def test_image_folders_with_metadata(tmp_path):
    home = tmp_path / "pets"
    for name in ("dogs/0.png", "guide_dogs/1.png"):
        picture(home / name)
    (home / "metadata.csv").write_text("file_name,count,by\ndogs/0.png,2,me\nguide_dogs/1.png,1,you\n")
    assert told(load_dataset(home)) == [("How many dogs are there?", 2), ("How many guide dogs are there?", 1)]
    (home / "metadata.csv").unlink()
    (home / "metadata.jsonl").write_text(json.dumps({"file_name": "dogs/0.png", "question": "How many?", "number": 4}))
    (home / "other.csv").write_text("nothing")
    assert told(load_dataset(home)) == [("How many?", 4)] and load_dataset(home)[0].uid == "pets/0"


def test_a_label_is_asked_about_in_the_plural(folder, tmp_path):
    assert told(load_dataset(table(folder, "image,label,count\n0.png,cat,3\n1.png,guide dog,0\n"))) == [
        ("How many cats are there?", 3), ("How many guide dogs are there?", 0)
    ]  # fmt: skip
    picture(tmp_path / "shots" / "1_knife" / "a.png")
    assert told(load_dataset(tmp_path / "shots")) == [("How many knives are there?", 1)]


def test_several_lists_or_none(folder, tmp_path):
    table(folder, "image,label,count\n0.png,cats,3\n", "a.csv")
    table(folder, "image,label,count\n0.png,cats,3\n", "b.csv")
    with pytest.raises(ValueError, match=r"several lists \(a.csv, b.csv\). Say which: dataset=set/a.csv"):
        load_dataset(folder)
    picture(tmp_path / "classes" / "cats" / "0.png")
    with pytest.raises(ValueError, match="nor folders named after counts"):
        load_dataset(tmp_path / "classes")


def test_configurations_of_the_hub_are_named_in_either_place():
    from vlm_counting.datasets import _find_source

    assert _find_source("hf:org/name:en@test") == _find_source("hf:org/name@en:test") == ("hub", "org/name", "en:test")
    assert _find_source("hf:org/name:en") == ("hub", "org/name", "en:")
    for wrong in ("hf:org/name:", "hf::en", "hf:org/name:en@de:test"):
        with pytest.raises(ValueError, match="Expected 'hf:"):
            _find_source(wrong)


PLURALS = """apple/apples apples/apples box/boxes bus/buses glass/glasses cherry/cherries boy/boys knife/knives
sheep/sheep
person/people people/people woman/women policeman/policemen human/humans child/children grandchild/grandchildren
Mouse/Mice tomato/tomatoes dress/dresses watch/watches red_plus/red_plusses dogs/dogs""".split()


@pytest.mark.parametrize("pair", PLURALS)
def test_plurals(pair):
    one, many = pair.replace("_", " ").split("/")
    assert plural_label(one) == many == plural_label(many)


def test_words_of_ones_own(folder):
    path = table(folder, "image,label,count,place\n0.png,apple,3,table\n1.png,knives,0,shelf\n")
    ask = "How many {label}s are on the {place}?"
    assert [s.question for s in load_dataset(path, question=ask)] == [
        "How many apples are on the table?", "How many knives are on the shelf?"
    ]  # fmt: skip
    both = load_dataset(path, question=f"{ask}|Count the {{labels}}: {{label}}.")
    assert [s.uid for s in both] == ["set/0~0", "set/0~1", "set/1~0", "set/1~1"]
    assert both[1].question == "Count the apples: apple." and both[1].factors["pair"] == "set/0"
    assert len(load_dataset(path, limit=1, question=["a?", "b?", "c?"])) == 3
    closed = load_dataset("balanced", limit=1, question="How many {label}s do you see?")[0]
    words = closed.factors["entity"].replace("_", " ")
    assert closed.question.startswith(f"How many {words} do you see? Choose from [") and closed.factors["options"]
    for wrong in ("", "a|a", "|", "How many {label", "How many {}?", "{label.x}", 7, []):
        with pytest.raises(ValueError, match="question is"):
            load_dataset(path, question=wrong)
    with pytest.raises(ValueError, match="No factor named 'shelf'"):
        load_dataset(path, question="How many on the {shelf}?")
