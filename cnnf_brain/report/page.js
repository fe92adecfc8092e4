"use strict";
// Sorting by a column, and the numbers under the pointer; without this the table stands as written, and <title> has the numbers.
// A long table has two bodies, the second one folded: rows are sorted over both.
const number = (text) => (/^[+\-−]?\d/.test(text) ? parseFloat(text.replace("−", "-")) : NaN);
function sort(header) {
  const table = header.closest("table"), bodies = [...table.tBodies], column = header.cellIndex;
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const cell = (row) => row.cells[column].textContent.trim();
  const sizes = bodies.map((body) => body.rows.length), rows = bodies.flatMap((body) => [...body.rows]);
  const texts = rows.map(cell).filter((text) => text !== "" && text !== "undefined");
  const numeric = texts.some((text) => !isNaN(number(text)));
  const key = (row) => (numeric ? number(cell(row)) : cell(row));
  const missing = (value) => (numeric ? isNaN(value) : value === "");
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return (up ? 1 : -1) * (numeric ? x - y : x.localeCompare(y));
  };
  rows.sort(order);
  bodies.forEach((body, i) => body.append(...rows.splice(0, sizes[i])));
}
for (const header of document.querySelectorAll("th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  button.addEventListener("click", () => sort(header));
  header.append(button);
}
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
function show(mark, x, y) {
  tip.textContent = mark.getAttribute("aria-label");
  tip.hidden = false;
  const room = document.documentElement;
  tip.style.left = `${Math.max(0, Math.min(x + 12, room.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > room.clientHeight ? y - 10 - tip.offsetHeight : y + 18}px`;
}
for (const mark of document.querySelectorAll("svg .mark")) {
  const title = mark.querySelector("title");
  mark.setAttribute("aria-label", title.textContent);
  title.remove(); // else the browser would show the same again
  mark.addEventListener("pointermove", (event) => show(mark, event.clientX, event.clientY));
  mark.addEventListener("pointerleave", () => (tip.hidden = true));
  mark.addEventListener("focus", () => {
    const box = mark.getBoundingClientRect();
    show(mark, box.left, box.top);
  });
  mark.addEventListener("blur", () => (tip.hidden = true));
}
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded.splice(0)) details.open = false;
});
