// Elements, numbers as text, and nothing else. Text goes in as text: no string becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An HTML element with attributes and children (elements or text). */
export function element(name, attributes = {}, ...children) {
  return furnished(document.createElement(name), attributes, children);
}

/** An SVG element with attributes and children. */
export function svg(name, attributes = {}, ...children) {
  return furnished(document.createElementNS(SVG, name), attributes, children);
}

function furnished(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A table of text, with a row of headings. */
export function table(headings, rows) {
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((text) => element("td", {}, text))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

const WHOLE = new Intl.NumberFormat("en");

/** A whole number with separators. */
export const whole = (number) => WHOLE.format(number);

/** A number in few digits: 0.0243, 1.2e-5. */
export function short(number, digits = 3) {
  if (number === 0) return "0";
  if (!Number.isFinite(number)) return String(number);
  const size = Math.abs(number);
  if (size >= 1e-3 && size < 1e5) return String(Number(number.toPrecision(digits)));
  return number.toExponential(digits - 1).replace("e+", "e");
}

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** A number of bytes with its unit. */
export function bytes(number) {
  let unit = 0;
  let left = number;
  while (left >= 1024 && unit < UNITS.length - 1) { left /= 1024; unit += 1; }
  return `${unit ? Number(left.toPrecision(3)) : left} ${UNITS[unit]}`;
}

/** A rate in few digits: 1.2 M. */
export function rate(number) {
  for (const [size, letter] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]]) {
    if (number >= size) return `${Number((number / size).toPrecision(3))}${letter}`;
  }
  return String(Number(number.toPrecision(2)));
}
