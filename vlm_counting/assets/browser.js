// The error browser: decodes the run, describes it to Tabulator, and fills the detail panel. Texts of a run are data:
// they reach the page as text, never as HTML.
"use strict";
(() => {
  const byId = id => document.getElementById(id);
  const read = id => { const node = byId(id), value = JSON.parse(node.textContent); node.remove(); return value; };
  const make = (tag, textContent = "", className = "", more = {}) =>
    Object.assign(document.createElement(tag), { textContent, className, ...more });
  const number = value => value.toLocaleString("en-US");
  const words = value => typeof value === "string" ? value.replaceAll("_", " ") : JSON.stringify(value);
  const headed = name => name.slice(0, 1).toUpperCase() + name.slice(1).replaceAll("_", " ");
  const signed = error => error === null ? "–" : error > 0 ? `+${number(error)}` : error < 0 ? `−${number(-error)}` : "0";
  const percent = share => share === 0 ? "0 %" : share === 1 ? "100 %" : share < 0.0005 ? "< 0.1 %"
    : share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;

  // --- the run: columns are {values, codes}; chances are 16-bit numbers, 21 a row, all 0 where unknown
  const run = read("answers"), pictures = read("pictures"), { size, counts: per } = run;
  const bytes = Uint8Array.from(atob(run.chances), letter => letter.charCodeAt(0)), chances = new DataView(bytes.buffer);
  const chance = (i, count) => chances.getUint16(2 * (per * i + count), true) / 65535;
  const at = (column, i) => column.values[column.codes ? column.codes[i] : i];
  const factors = Object.entries(run.factors), several = run.columns.model.values.length > 1;
  const flat = factors.filter(([, column]) => column.values.every(value => value === null || typeof value !== "object"));
  const results = ["right", "too few", "too many", "no number"], marks = ["✓", "▼", "▲", "–"];
  const rows = Array.from({ length: size }, (_, i) => {
    const row = { i, sure: null, truth: null, likely: null };
    for (const [name, column] of Object.entries(run.columns)) row[name] = at(column, i);
    flat.forEach(([, column], k) => { row[`factor${k}`] = at(column, i); });
    row.error = row.count === null ? null : row.count - row.target;
    row.result = row.count === null ? 3 : row.error === 0 ? 0 : row.error < 0 ? 1 : 2;
    if (bytes.length) for (let k = 0; k < per; k++) if (chance(i, k) > row.sure) [row.sure, row.likely] = [chance(i, k), k];
    if (row.sure !== null && row.target < per) row.truth = chance(i, row.target);
    return row;
  });
  const asked = new Map(rows.map(row => [row.uid, []])); // uid -> its answers, one a model
  for (const row of rows) asked.get(row.uid).push(row);
  const together = same => same.length < 2 ? 4 : same.every(row => row.result === 0) ? 0 : same.some(row => row.result === 0) ? 3
    : same.some(row => row.count !== same[0].count) ? 2 : 1;
  const anyChances = rows.some(row => row.sure !== null), anyPicture = pictures.length > 0;
  const key = row => several ? `${row.uid}@${row.model}` : row.uid;
  const image = row => {
    const data = pictures[row.picture], kind = { i: "png", "/": "jpeg" }[data[0]] ?? "webp"; // by the first byte
    return make("img", "", "", { src: `data:image/${kind};base64,${data}`, alt: `Picture of ${row.uid}` });
  };

  // --- filters: an answer has one code a filter; an option may stand for several codes ('wrong' is all but right)
  const filters = [
    { name: "result", label: "Result", codes: rows.map(row => row.result), groups: [[0], [1, 2], [1, 3], [1, 4]],
      options: ["right", "wrong", "too few", "too many", "no number"] },
    { name: "size", label: "Error size", options: ["0", "±1", "±2", "±3 or more", "no number"],
      codes: rows.map(row => row.error === null ? 4 : Math.min(3, Math.abs(row.error))) },
  ];
  const add = (name, label, field) => {
    const values = [...new Set(rows.map(row => row[field]))], place = new Map();
    values.sort((a, b) => (a === null) - (b === null) || (typeof a === "number" ? a - b : words(a) < words(b) ? -1 : 1));
    if (values.length < 2 || values.length > 200) return;
    values.forEach((value, code) => place.set(value, code));
    const options = values.map(value => value === null ? "none" : words(value));
    filters.push({ name, label, options, codes: rows.map(row => place.get(row[field])) });
  };
  add("target", "True count", "target");
  for (const name of ["model", "entity", "family"]) if (run.columns[name]) add(name, headed(name), name);
  if (several) filters.push({ name: "models", label: "Models", options: ["all right", "all wrong", "disagree"],
    codes: rows.map(row => together(asked.get(row.uid))), groups: [[0], [1], [1, 2], [2], []] });
  if (anyChances) filters.push({ name: "certainty", label: "Certainty", options: ["sure", "wrong and sure", "unsure"],
    codes: rows.map(row => row.sure === null ? 3 : row.sure <= 0.9 ? 2 : row.result ? 1 : 0), groups: [[0], [0, 1], [2], []] });
  const first = filters.length;
  add("count", "Said", "count");
  add("likely", "Likeliest", "likely");
  flat.forEach(([name], k) => add(`factor-${name}`, headed(name), `factor${k}`));
  filters.forEach((filter, k) => {
    const label = make("label"), select = filter.select = make("select", "", "", { id: `filter-${filter.name}`, onchange: apply });
    select.append(new Option("all", ""), ...filter.options.map((text, code) => new Option(text, code)));
    label.append(make("span", filter.label), select);
    (k < first ? byId("filters") : byId("more").lastElementChild).append(label);
    filter.groups ??= filter.options.map((_, code) => [code]);
  });
  byId("more").hidden = filters.length === first;
  const search = byId("search"), keep = new Uint8Array(size);
  const { picture, ...texts } = run.columns, searched = [...Object.entries(texts), ...factors];
  const flatten = value => words(value).toLowerCase().replaceAll(" ", "_");

  function found() { // 1 for rows in which every word of the search occurs somewhere; 'layout=7': in that column, and whole
    const hits = new Uint8Array(size).fill(1);
    for (const term of search.value.toLowerCase().split(/\s+/).filter(Boolean)) {
      const [name, wanted] = term.split(/=(.*)/s), columns = searched.filter(([known]) => flatten(known) === name);
      const exact = wanted !== undefined && columns.length > 0;
      const has = value => value !== null && (exact ? !wanted || flatten(value) === wanted : words(value).toLowerCase().includes(term));
      const inside = (exact ? columns : searched).map(([, column]) => ({ codes: column.codes, has: column.values.map(has) }));
      for (let i = 0; i < size; i++) hits[i] &= inside.some(({ codes, has }) => has[codes ? codes[i] : i]);
    }
    return hits;
  }
  function apply() { // what is left, and what each option would leave
    const hits = found(), totals = [0, 0, 0, 0], counts = filters.map(filter => new Int32Array(filter.options.length));
    const chosen = filters.map(filter => filter.select.value === "" ? -1 : Number(filter.select.value));
    for (let i = 0; i < size; i++) {
      const failed = [];
      if (!hits[i]) { keep[i] = 0; continue; }
      filters.forEach(({ groups, codes }, k) => { if (chosen[k] >= 0 && !groups[codes[i]].includes(chosen[k])) failed.push(k); });
      keep[i] = failed.length === 0;
      if (keep[i]) totals[rows[i].result]++;
      if (failed.length < 2) filters.forEach(({ groups, codes }, k) => {
        if (keep[i] || k === failed[0]) for (const code of groups[codes[i]]) counts[k][code]++;
      });
    }
    filters.forEach(({ select, options }, k) => {
      options.forEach((text, code) => { select.options[code + 1].text = `${text} (${number(counts[k][code])})`; });
      select.classList.toggle("on", chosen[k] >= 0);
    });
    const left = totals.reduce((sum, value) => sum + value), hidden = chosen.slice(first).filter(code => code >= 0).length;
    const part = (total, k) => { const node = make("i", "", `result${k}`); node.style.flexGrow = total; return node; };
    const named = (total, k) => make("span", `${marks[k]} ${results[k]} ${left ? percent(total / left) : "–"}`, `result${k}`);
    byId("status").textContent = `${number(left)} of ${number(size)}`;
    byId("more").firstElementChild.textContent = hidden ? `Filters (${hidden})` : "Filters";
    byId("clear").hidden = !search.value && chosen.every(code => code < 0);
    byId("shares").replaceChildren(...totals.map(part));
    byId("legend").replaceChildren(...totals.map(named));
    table.setFilter(row => keep[row.i]);
    remember(keep[shared] ? shared : null);
  }
  function clear() {
    clearTimeout(waiting);
    search.value = "";
    filters.forEach(filter => { filter.select.value = ""; });
    apply();
  }

  // --- the grid
  const collator = new Intl.Collator("en", { numeric: true }), textual = (a, b) => collator.compare(a ?? "", b ?? "");
  const numeric = { sorter: "number", sorterParams: { alignEmptyValues: "bottom" }, hozAlign: "right", headerHozAlign: "right" };
  const line = cell => {
    const value = cell.getValue(), empty = value === null || value === "";
    return make("span", empty ? "–" : words(value).slice(0, 300), "text", { dir: "auto" });
  };
  const plain = cell => make("span", cell.getValue() === null ? "–" : number(cell.getValue()));
  const share = cell => {
    const value = cell.getValue(), node = make("span", value === null ? "–" : percent(value), "share");
    node.style.backgroundSize = `${100 * value}% 3px`;
    return node;
  };
  const verdict = cell => make("span", `${marks[cell.getValue()]} ${results[cell.getValue()]}`, `result${cell.getValue()}`);
  const error = cell => make("b", signed(cell.getValue()), `result${cell.getData().result}`);
  const shown = cell => cell.getValue() < 0 ? make("span", "no picture", "faint") : image(cell.getData());
  const column = (name, field, more) => ({ title: make("i", name).innerHTML, titleDownload: name, field, formatter: line,
    sorter: textual, download: true, ...more });
  const known = ["entity", "family"].filter(name => run.columns[name]);
  const definitions = [
    { title: "Picture", field: "picture", headerSort: false, download: false, width: 76, visible: anyPicture, formatter: shown },
    column("True", "target", { ...numeric, formatter: plain, width: 70 }),
    column("Said", "count", { ...numeric, formatter: plain, width: 70 }),
    column("Error", "error", { ...numeric, formatter: error, width: 76 }),
    column("Result", "result", { sorter: "number", formatter: verdict, width: 112, accessorDownload: value => results[value] }),
    column("Answer as given", "text", { width: 160 }),
    column("P(likeliest)", "sure", { ...numeric, formatter: share, width: 112, visible: anyChances }),
    column("P(true)", "truth", { ...numeric, formatter: share, width: 96, visible: anyChances }),
    column("Likeliest", "likely", { ...numeric, formatter: plain, width: 100, visible: false }),
    column("Model", "model", { width: 150, visible: several }),
    ...known.map(name => column(headed(name), name, { width: 140, visible: run.columns[name].values.length > 1 })),
    ...flat.map(([name, { values }], k) => column(headed(name), `factor${k}`, { width: 110, visible: run.shown.includes(name),
      sorter: values.every(value => value === null || typeof value === "number") ? "number" : textual })),
    column("uid", "uid", { width: 150 }),
    column("Question", "question", { width: 420, visible: run.columns.question.values.some(Boolean) }),
  ];
  const table = new Tabulator("#table", {
    data: rows, columns: definitions, index: "i", layout: "fitDataFill", height: "100%", rowHeight: anyPicture ? 60 : 36,
    pagination: true, paginationSize: 50, paginationSizeSelector: [25, 50, 100, 500], paginationButtonCount: 3,
    paginationCounter: "rows", selectableRows: 1, selectableRowsCheck: () => false, movableColumns: true,
    nestedFieldSeparator: false, placeholder: "No answer is left. Esc clears the filters.",
  });
  let active = null, current = null, shared = null, waiting = 0;
  const order = () => active ??= table.getRows("active");
  const position = () => order().findIndex(row => row.getIndex() === current);
  async function choose(row, told = true) { // show a row of the grid, on its page, and put its name into the address
    current = row ? row.getIndex() : null;
    table.deselectRow();
    show(row ? rows[current] : null);
    if (!row) return;
    const page = Math.floor(position() / table.getPageSize()) + 1;
    if (page !== table.getPage()) await table.setPage(page);
    if (current !== row.getIndex()) return;
    row.select();
    await table.scrollToRow(row, "nearest", false).catch(() => {});
    if (told) remember(current);
  }
  function remember(i) { // the answer (null: none) and the filters, in the address
    const chosen = filters.filter(({ select }) => select.value).map(({ name, options, select }) => [name, options[select.value]]);
    const name = i === null ? "" : encodeURIComponent(key(rows[i]).toWellFormed?.() ?? i).replace(/%(2F|40)/g, decodeURIComponent);
    const rest = new URLSearchParams(search.value ? [...chosen, ["search", search.value]] : chosen);
    shared = i;
    if (location.hash || name || `${rest}`) try {
      history.replaceState(null, "", `#${name}${`${rest}` && "?"}${rest}`);
    } catch { /* a framed page has no address of its own */ }
  }
  function follow() { // the address: #uid or #uid@model, and the filters behind '?'; without that they stay
    let [name, rest] = location.hash.slice(1).split(/\?(.*)/s);
    try { name = decodeURIComponent(name); } catch { /* not written by us */ }
    const row = name && (rows.find(row => key(row) === name) ?? rows.find(row => row.uid === name));
    const wanted = rest === undefined ? null : new URLSearchParams(rest);
    if (wanted) for (const { name, options, select } of filters) select.selectedIndex = 1 + options.indexOf(wanted.get(name));
    if (wanted) search.value = wanted.get("search") ?? "";
    apply();
    if (row) reveal(row, true);
    return Boolean(row);
  }
  const reveal = (row, told) => { if (!keep[row.i]) clear(); choose(table.getRow(row.i), told); };
  const go = place => { if (place >= 0 && place < order().length) choose(order()[place]); };
  const turn = by => go((table.getPage() - 1 + by) * table.getPageSize());

  // --- the selected answer
  function chart(row) {
    const figure = make("figure", "", `chart result${row.result}`), bars = make("div", "", "bars");
    const all = Array.from({ length: per }, (_, k) => chance(row.i, k)), caption = make("figcaption");
    all.forEach((value, k) => {
      const fill = make("i"), style = `bar${k === row.target ? " true" : ""}${k === row.count ? " said" : ""}`;
      const bar = make("div", "", style, { title: `${k}: ${percent(value)}` });
      fill.style.height = `${100 * value / row.sure}%`;
      bar.dataset.chance = value;
      bar.append(fill, make("span", k));
      bars.append(bar);
    });
    bars.setAttribute("role", "img");
    bars.setAttribute("aria-label", all.map((value, k) => `${k}: ${percent(value)}`).join(", "));
    const named = (count, name, style) => make("span", `${name} ${number(count)}: ${count in all ? percent(all[count]) : "beyond 20"}`, style);
    if (row.error === 0) caption.append(named(row.target, "true and said", "true"));
    else caption.append(named(row.target, "true", "true"), row.count === null ? "" : named(row.count, "said", "said"));
    caption.append(make("span", `highest bar ${percent(row.sure)}`, "faint"));
    figure.append(bars, caption);
    return figure;
  }
  function show(row) {
    const head = byId("verdict"), left = byId("view"), right = byId("facts"); // the verdict stays, so that changes of it are read aloud
    const part = (title, node) => right.append(make("h3", title), node);
    const text = (value, style) => make("p", value, style, { dir: "auto" });
    byId("detail").scrollTop = 0;
    for (const node of [head, left, right]) node.replaceChildren();
    head.className = row ? `verdict result${row.result}` : "faint";
    if (!row) return head.append("No answer is left. Clear a filter to see more.");
    const said = row.count === null ? "no number" : number(row.count);
    head.append(make("strong", row.target), " true, ", make("strong", said), ` said${row.error ? ` (${signed(row.error)})` : ""}`);
    head.append(make("em", ` ${marks[row.result]} ${results[row.result]}`));
    const open = make("button", "", "picture", { title: "Show it large", onclick: () => enlarge(row) });
    if (row.picture >= 0) open.append(image(row));
    left.append(row.picture < 0 ? make("p", "no picture", "no-picture faint") : open);
    right.append(make("h2", several ? `${row.uid} · ${row.model}` : row.uid));
    if (row.sure !== null) part("Probability of each count, 0 to 20", chart(row));
    part("Question", row.question ? text(row.question) : text("not kept in this file", "faint"));
    part("Answer as given", row.text ? text(row.text, "given") : text(row.count === null ? "empty" : "not kept in this file", "faint"));
    const others = make("p", "", "others"), facts = make("dl");
    for (const other of asked.get(row.uid).filter(other => other !== row)) {
      const answer = `${other.model}: ${other.count === null ? "no number" : number(other.count)} ${marks[other.result]}`;
      others.append(make("button", answer, `result${other.result}`, { onclick: () => reveal(other, true) }));
    }
    if (others.childElementCount) part("The same question to other models", others);
    for (const [name, column] of factors) {
      if (at(column, row.i) !== null) facts.append(make("dt", words(name)), make("dd", words(at(column, row.i))));
    }
    if (facts.childElementCount) part("Factors", facts);
  }
  function enlarge(row) { // until a click or Esc
    byId("large").replaceChildren(image(row));
    byId("large").showModal();
  }

  // --- what hands do
  const help = () => byId("help").showModal(), step = by => go(position() + by);
  const toggle = () => { const { select } = filters[0]; select.value = select.value === "1" ? "" : "1"; apply(); };
  const commands = { j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1), w: toggle,
    ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), "/": () => search.focus(), "?": help, Escape: clear };
  const sort = ({ currentTarget, shiftKey }) =>
    currentTarget.firstElementChild.dispatchEvent(new MouseEvent("click", { bubbles: true, shiftKey }));
  const close = except => document.querySelectorAll("details[open]").forEach(menu => { menu.open = menu.contains(except); });
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 120); });
  byId("clear").addEventListener("click", clear);
  byId("csv").addEventListener("click", () => table.download("csv", `${run.file}.csv`));
  byId("help-button").addEventListener("click", help);
  byId("large").addEventListener("click", () => byId("large").close());
  document.addEventListener("click", event => close(event.target));
  document.addEventListener("keydown", event => {
    const typing = event.target.closest("input, select, textarea");
    if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!Object.hasOwn(commands, event.key) || typing && event.key !== "Escape") return;
    if (event.key.startsWith("Arrow") && event.target.closest("#detail")) return; // they scroll it
    event.preventDefault();
    const menu = document.querySelector("details[open]");
    close(null);
    if (event.key !== "Escape") return commands[event.key]();
    if (menu) menu.firstElementChild.focus(); // Esc leaves one thing at a time: a menu, the search, a field, all filters
    else if (typing === search && search.value) (search.value = "", apply());
    else if (typing && typing !== search) typing.blur();
    else (typing?.blur(), clear());
  });
  addEventListener("hashchange", follow);
  for (const event of ["dataFiltered", "dataSorted"]) table.on(event, () => { active = null; });
  for (const event of ["rowSelected", "rowDeselected"])
    table.on(event, row => row.getElement().setAttribute("aria-selected", event === "rowSelected"));
  table.on("rowClick", (_, row) => choose(row));
  table.on("renderComplete", () => { if (current === null || position() < 0) choose(order()[0], false); });
  table.on("tableBuilt", () => {
    for (const column of table.getColumns()) {
      const heading = column.getElement();
      if (column.getDefinition().headerSort !== false) heading.tabIndex = 0;
      heading.addEventListener("keydown", event => { if (event.key === "Enter") sort(event); });
      const box = make("input", "", "", { type: "checkbox", checked: column.isVisible(), onchange: () => column.toggle() });
      const label = make("label", "", "check");
      label.append(box, column.getDefinition().titleDownload ?? "Picture");
      byId("columns").lastElementChild.append(label);
    }
    if (!follow()) choose(order()[0], false);
    document.body.dataset.ready = "yes";
  });
})();
