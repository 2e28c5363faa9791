// The completions of report.py's page: filter, step through, two evaluations side by side.
// What a model or a file has written is only ever set as textContent.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { problems, evaluations } = data; // problems: [id, question, gold, level, subject]
// A record is a list: these are the places in it.
const [PROBLEM, SAMPLE, TEXT, ANSWER, RIGHT, CUT, TOKENS, SURE] = [0, 1, 2, 3, 4, 5, 6, 7];
const ROW = 28; // pixels, as in the style
const byId = (id) => document.getElementById(id);
let found = []; // the records that pass the filters
let at = 0; // the place of the shown one among them

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ------------------------------------------------------------------------------ what is compared

// The records of each problem, by problem. Made once for each evaluation that is shown.
function grouped(evaluation) {
  if (!evaluation.groups) {
    evaluation.groups = new Map();
    for (const record of evaluation.records) {
      const group = evaluation.groups.get(record[PROBLEM]);
      if (group) group.push(record);
      else evaluation.groups.set(record[PROBLEM], [record]);
    }
  }
  return evaluation.groups;
}

const shown = () => evaluations[byId("shown").value];
const beside = () => evaluations[byId("beside").value]; // undefined for "nothing"

// The other evaluation's record of the same problem: the same sample, or else its first.
function partner(record) {
  const group = beside() && grouped(beside()).get(record[PROBLEM]);
  return group && (group.find((other) => other[SAMPLE] === record[SAMPLE]) || group[0]);
}

// --------------------------------------------------------------------------------------- filters

function passes(record, wanted) {
  const [, question, gold, level, subject] = problems[record[PROBLEM]];
  if (wanted.level !== "" && level !== wanted.level) return false;
  if (wanted.subject !== "" && subject !== wanted.subject) return false;
  const kinds = { right: record[RIGHT], wrong: !record[RIGHT], cut: record[CUT],
                  none: record[ANSWER] === null };
  if (wanted.verdict !== "" && !kinds[wanted.verdict]) return false;
  if (wanted.change !== "") {
    const other = partner(record);
    if (!other || other[RIGHT] === record[RIGHT]) return false;
    if (wanted.change === "gained" && !record[RIGHT]) return false;
    if (wanted.change === "lost" && record[RIGHT]) return false;
  }
  return wanted.word === "" ||
    [question, gold, record[TEXT]].some((text) => text.toLowerCase().includes(wanted.word));
}

function filter() {
  const wanted = { word: byId("word").value.toLowerCase() };
  for (const name of ["verdict", "change", "level", "subject"]) wanted[name] = byId(name).value;
  const all = shown().records;
  found = all.filter((record) => passes(record, wanted));
  const right = found.filter((record) => record[RIGHT]).length;
  const share = found.length ? ` (${(100 * right / found.length).toFixed(1)} %)` : "";
  byId("count").textContent =
    `${found.length} of ${all.length} completions, ${right} of them right${share}`;
  go(0);
}

// ------------------------------------------------------------------------------- list and details

function verdict(record) {
  return record[RIGHT] ? "right" : "wrong";
}

// Only the rows in view are elements: ten thousand would be slow.
function drawList() {
  const list = byId("list"), first = Math.floor(list.scrollTop / ROW);
  const last = Math.min(found.length, first + Math.ceil(list.clientHeight / ROW) + 1);
  const space = element("div", "", "");
  space.style.height = `${found.length * ROW}px`;
  const rows = [space];
  for (let place = first; place < last; place += 1) {
    const record = found[place], [, question] = problems[record[PROBLEM]];
    const row = element("div", `row ${verdict(record)}`,
                        `${record[PROBLEM] + 1}.${record[SAMPLE]}  ${question.slice(0, 80)}`);
    row.style.top = `${place * ROW}px`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(place === at));
    row.addEventListener("click", () => go(place));
    rows.push(row);
  }
  list.replaceChildren(...rows);
}

function side(evaluation, record) {
  if (!record) return element("div", "side soft", `${evaluation.name}: not asked this problem`);
  const box = element("div", `side ${verdict(record)}`, "");
  const facts = [record[RIGHT] ? "right" : "wrong",
                 record[ANSWER] === null ? "no answer" : `answer ${record[ANSWER]}`];
  if (record[CUT]) facts.push("cut");
  if (record[TOKENS] !== null) facts.push(`${record[TOKENS]} tokens`);
  if (record[SURE] !== null) facts.push(`confidence ${record[SURE].toFixed(3)}`);
  box.append(element("strong", "", evaluation.name), element("div", "soft facts", facts.join(", ")),
             element("pre", "text", record[TEXT]));
  const group = grouped(evaluation).get(record[PROBLEM]);
  if (group.length > 1) {
    const answers = group.map((other) => other[ANSWER] === null ? "none" : other[ANSWER]);
    box.append(element("div", "soft text", `all ${group.length} answers: ${answers.join(" | ")}`));
  }
  return box;
}

function drawDetails() {
  const box = byId("details"), record = found[at];
  if (!record) {
    box.replaceChildren(element("p", "soft", "No completion passes these filters."));
    return;
  }
  const [id, question, gold, level, subject] = problems[record[PROBLEM]];
  const about = [id, `sample ${record[SAMPLE]}`, level && `level ${level}`, subject,
                 `gold ${gold}`].filter((text) => text);
  const sides = element("div", "sides", "");
  sides.append(side(shown(), record));
  if (beside()) sides.append(side(beside(), partner(record)));
  box.replaceChildren(element("div", "soft about", about.join(" · ")),
                      element("p", "text question", question), sides);
}

// Show the completion at this place of the list, and keep its row in view.
function go(place) {
  at = Math.max(0, Math.min(place, found.length - 1));
  const list = byId("list"), top = at * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) {
    list.scrollTop = top + ROW - list.clientHeight;
  }
  drawList();
  drawDetails();
}

// -------------------------------------------------------------------------------------- the start

function choices(select, names, first) {
  const made = names.map(([value, text]) => {
    const option = element("option", "", text);
    option.value = value;
    return option;
  });
  select.replaceChildren(...made);
  select.value = first;
}

function partsOf(place) {
  const names = [...new Set(problems.map((problem) => problem[place]))].sort();
  return [["", "all"], ...names.filter((name) => name !== "").map((name) => [name, name])];
}

function swap() {
  if (!beside()) return;
  const [left, right] = [byId("shown").value, byId("beside").value];
  byId("shown").value = right;
  byId("beside").value = left;
  filter();
}

// Choose a value of a list, or everything if it is chosen already.
function toggle(id, value) {
  byId(id).value = byId(id).value === value ? "" : value;
  filter();
}

const KEYS = {
  j: () => go(at + 1), ArrowDown: () => go(at + 1), k: () => go(at - 1), ArrowUp: () => go(at - 1),
  w: () => toggle("verdict", "wrong"), c: () => toggle("change", "changed"), s: swap,
  "/": () => byId("word").focus(),
};

function press(event) {
  if (event.key === "Escape") document.activeElement.blur();
  const typing = ["INPUT", "SELECT"].includes(document.activeElement.tagName);
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
}

function start() {
  if (!evaluations.length) return;
  const names = evaluations.map((evaluation, number) => [String(number), evaluation.name]);
  choices(byId("shown"), names, String(data.shown));
  choices(byId("beside"), [["", "nothing"], ...names], String(data.beside));
  choices(byId("level"), partsOf(3), "");
  choices(byId("subject"), partsOf(4), "");
  for (const id of ["shown", "beside", "verdict", "change", "level", "subject"]) {
    byId(id).addEventListener("change", filter);
  }
  byId("word").addEventListener("input", filter);
  byId("swap").addEventListener("click", swap);
  byId("list").addEventListener("scroll", drawList);
  document.addEventListener("keydown", press);
  filter();
}

start();
