"Package metadata lives in settings.ini, the one file that nbdev and pip both read; this script hands it to setuptools."

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
EXTRAS = ("dev", "slurm", "served", "quantized", "adapters")
SHIPPED = ("nbs/[a-z]*.ipynb", "data/published/*")  # of the repository: the commands, and what the paper found


class BuildWithCommands(build_py):
    "An installed package has copies of these files beside its modules; a clone, also an editable one, reads its own."

    def run(self) -> None:
        super().run()
        for path in [] if self.editable_mode else [path for pattern in SHIPPED for path in Path().glob(pattern)]:
            copy = Path(self.build_lib) / "vlm_counting" / "shipped" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(
    cmdclass={"build_py": BuildWithCommands},
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    keywords=cfg["keywords"],
    url=cfg["git_url"],
    packages=find_packages(include=["vlm_counting", "vlm_counting.*"]),
    package_data={"vlm_counting": ["twins/*/*", "planted/*", "assets/*", "assets/*/*", "vendor/*/*"]},
    include_package_data=True,
    zip_safe=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={name: cfg[f"{name}_requirements"].split() for name in EXTRAS},
    entry_points={
        "console_scripts": [cfg["console_scripts"]],
        "papermill.io": ["vlm-counting=vlm_counting.runs:PAPERMILL_IO"],
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
