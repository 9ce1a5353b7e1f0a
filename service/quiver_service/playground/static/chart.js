// Two charts and a sparkline, as SVG of the size that there is.

import { element, short, svg, whole } from "./dom.js";

const MARKERS = [
  (x, y) => svg("circle", { cx: x, cy: y, r: 5.5 }),
  (x, y) => svg("path", { d: `M${x} ${y - 5}l5 9h-10z` }),
  (x, y) => svg("rect", { x: x - 3.8, y: y - 3.8, width: 7.6, height: 7.6 }),
  (x, y) => svg("path", { d: `M${x} ${y - 5.4}l5.4 5.4l-5.4 5.4l-5.4 -5.4z` }),
  (x, y) => svg("path", { d: `M${x} ${y + 5}l5 -9h-10z` }),
];
const DASHES = [null, "7 4", null, "2 3", "9 3 2 3"];

/** Call `draw` with the width of `box`, now and whenever it changes. */
export function whenSized(box, draw) {
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (Math.abs(box.clientWidth - width) > 1) { width = box.clientWidth; draw(); }
  });
  observer.observe(box);
}

/** Positions of round numbers in [low, high], about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999) ?? rough;
  const first = Math.ceil(low / step);
  const found = [];
  for (let index = first; index * step <= high + step * 1e-9 && found.length < 50; index += 1) found.push(index * step);
  return found;
}

/** Count values in equal bins. */
export function counted(values, low, high, bins) {
  const counts = new Float64Array(bins);
  const factor = high > low ? bins / (high - low) : 0;
  for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((value - low) * factor)))] += 1;
  return counts;
}

/** Least and greatest of values and levels. */
export function range(values, levels = []) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of [values, levels]) {
    for (const value of list) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low === high ? [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5] : [low, high];
}

/** A histogram of `values` with a line for each of `levels`. */
export function histogram(box, { values, levels, logarithmic, label }) {
  const width = Math.max(240, box.clientWidth);
  const height = 270;
  const [left, right, top, bottom] = [8, width - 8, 10, height - 30];
  const [low, high] = range(values, levels);
  const margin = (high - low) * 0.015;
  const at = (value) => left + ((value - low + margin) / (high - low + 2 * margin)) * (right - left);
  const bins = Math.max(24, Math.min(160, Math.round(width / 6)));
  const counts = counted(values, low, high, bins);
  const height_of = logarithmic ? Math.log1p : (count) => count;
  const most = height_of(Math.max(...counts)) || 1;
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  const step = (right - left) / bins;
  counts.forEach((count, index) => {
    if (!count) return;
    const tall = Math.max(1, (height_of(count) / most) * (bottom - top - 12));
    const from = at(low + ((high - low) * index) / bins);
    const bar = svg("rect", { class: "bar", x: from, y: bottom - tall, width: Math.max(1, step - 0.8), height: tall, rx: 1 });
    bar.append(svg("title", {}, `${whole(count)} values near ${short(low + ((high - low) * (index + 0.5)) / bins)}`));
    root.append(bar);
  });
  const distinct = [...new Set(levels)];
  for (const level of distinct) {
    const x = at(level);
    const line = svg("line", { class: distinct.length > 40 ? "level many" : "level", x1: x, x2: x, y1: top, y2: bottom });
    line.append(svg("title", {}, `level ${short(level, 6)}`));
    root.append(line);
    if (distinct.length <= 40) root.append(svg("path", { class: "rug", d: `M${x} ${bottom}l4 6h-8z` }));
  }
  root.append(svg("line", { class: "base", x1: left, x2: right, y1: bottom, y2: bottom }));
  for (const tick of ticks(low, high, Math.max(5, Math.round(width / 110)))) {
    const x = at(tick);
    const anchor = x < left + 16 ? "start" : x > right - 16 ? "end" : "middle";
    root.append(svg("text", { x, y: bottom + 22, "text-anchor": anchor }, short(Math.abs(tick) < (high - low) * 1e-9 ? 0 : tick, 4)));
  }
  box.replaceChildren(root);
}

/** Curves of errors over bits, on a logarithmic scale. `series` have name, place, points of [bits, error]. */
export function curves(box, { series, bits, chosen, label }) {
  const width = Math.max(240, box.clientWidth);
  const height = 330;
  const [left, right, top, bottom] = [58, width - 18, 12, height - 44];
  const errors = series.flatMap(({ points }) => points.map(([, error]) => error)).filter((error) => error > 0);
  if (errors.length === 0) {
    box.replaceChildren(element("p", { class: "empty" }, "No errors to show: choose a method above, or a vector with more than one value."));
    return;
  }
  const low = Math.floor(Math.log10(Math.min(...errors)) - 0.05);
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...errors)) + 0.02));
  const x_of = (count) => left + 14 + ((count - 1) / 7) * (right - left - 28);
  const y_of = (error) => bottom - ((Math.log10(Math.max(error, 10 ** low)) - low) / (high - low)) * (bottom - top);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  const half = (x_of(2) - x_of(1)) / 2;
  root.append(svg("rect", { class: "now", x: x_of(bits) - Math.min(half, 24), y: top, width: 2 * Math.min(half, 24), height: bottom - top, rx: 6 }));
  const every = Math.ceil((high - low) / 8);
  for (let power = low; power <= high; power += every) {
    const y = y_of(10 ** power);
    root.append(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }), svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, power >= -3 && power <= 3 ? String(Number((10 ** power).toPrecision(1))) : `1e${power}`));
  }
  for (let count = 1; count <= 8; count += 1) root.append(svg("text", { x: x_of(count), y: bottom + 20, "text-anchor": "middle" }, String(count)));
  root.append(svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "bits per value"));
  for (const { name, place, points } of series) {
    const group = svg("g", { class: `s${place % 8}` });
    const path = points.map(([count, error], index) => `${index ? "L" : "M"}${x_of(count)} ${y_of(error)}`).join("");
    group.append(svg("path", { class: "curve", d: path, "stroke-dasharray": DASHES[place % DASHES.length] }));
    for (const [count, error] of points) {
      const marker = MARKERS[place % MARKERS.length](x_of(count), y_of(error));
      marker.setAttribute("class", "marker");
      marker.append(svg("title", {}, `${name}, ${count} bits: ${short(error)}`));
      group.append(marker);
      if (name === chosen && count === bits) group.append(svg("circle", { class: "chosen", cx: x_of(count), cy: y_of(error), r: 9 }));
    }
    root.append(group);
  }
  box.replaceChildren(root);
}

/** A piece of a curve, for the legend. */
export function sample(place) {
  const root = svg("svg", { viewBox: "0 0 22 12", class: `s${place % 8}`, "aria-hidden": "true" });
  const marker = MARKERS[place % MARKERS.length](11, 6);
  marker.setAttribute("class", "marker");
  root.append(svg("path", { class: "curve", d: "M0 6H22", "stroke-dasharray": DASHES[place % DASHES.length] }), marker);
  return root;
}

/** What a number was lately. */
export function sparkline(box, history, length) {
  const width = Math.max(100, box.clientWidth);
  const most = Math.max(...history, 1);
  const points = history.map((value, index) => [width - ((history.length - 1 - index) * width) / (length - 1), 38 - (value / most) * 34]);
  const line = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
  const root = svg("svg", { viewBox: `0 0 ${width} 40`, preserveAspectRatio: "none" });
  if (points.length > 1) root.append(svg("path", { d: `M${points[0][0]} 40L${line.join("L")}L${width} 40z` }), svg("polyline", { points: line.join(" ") }));
  box.replaceChildren(root);
}
