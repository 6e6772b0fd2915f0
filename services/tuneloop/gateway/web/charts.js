// Small charts in SVG: points with intervals, joined by a line. Drawn for the available width, with
// a table of the same figures for people who prefer to read them.

import { el, svg } from "./dom.js";
import { figure } from "./format.js";

const HEIGHT = 190;
const PAD = { left: 44, right: 14, top: 12, bottom: 26 };

/** Round numbers that cover `low` to `high`. */
export function ticks(low, high, wanted = 4) {
  if (!(high > low)) return [low];
  const rough = (high - low) / wanted;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

export class Chart {
  /**
   * `points` given to `show` are `{x, y, low?, high?, tooFew?}`; `bounds` fixes the axis (`[0, 1]` for a
   * rate); `format` writes a value, `xName` names the other axis.
   */
  constructor({ title, note, xName, format = figure, bounds = null, empty = "Nothing yet" }) {
    Object.assign(this, { title, xName, format, bounds, empty, points: [], marked: null });
    this.readout = el("span", { class: "readout" });
    this.drawing = svg("svg", { role: "img", height: HEIGHT });
    this.rows = el("tbody");
    const heads = [xName, title, "95% interval"].map((name) => el("th", { scope: "col" }, name));
    this.node = el(
      "figure",
      { class: "card chart" },
      el("figcaption", {}, el("h3", {}, title), this.readout, el("p", {}, note)),
      this.drawing,
      el(
        "details",
        {},
        el("summary", {}, "As a table"),
        el(
          "div",
          { class: "scrolls", tabindex: 0, role: "group", "aria-label": `${title}, as a table` },
          el("table", {}, el("thead", {}, el("tr", {}, ...heads)), this.rows),
        ),
      ),
    );
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.rest());
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  /** Shows `points`; the one at `marked` stands out. */
  show(points, marked = null) {
    if (JSON.stringify([points, marked]) === JSON.stringify([this.points, this.marked])) return;
    this.points = points;
    this.marked = marked;
    this.draw();
    this.rest();
    this.rows.replaceChildren(...[...points].reverse().map((point) => this.row(point)));
  }

  row(point) {
    const interval = this.interval(point) ?? "–";
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, String(point.x)),
      el("td", {}, this.format(point.y)),
      el("td", {}, interval),
    );
  }

  draw() {
    const width = this.drawing.clientWidth;
    if (!width) return;
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.drawing.setAttribute("aria-label", this.summary());
    if (!this.points.length) {
      this.drawing.replaceChildren(
        svg(
          "text",
          { class: "nothing", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" },
          this.empty,
        ),
      );
      return;
    }
    const scale = this.scale(width);
    this.scaled = this.points.map((point) => ({ point, x: scale.x(point.x), y: scale.y(point.y) }));
    this.cursor = svg("line", {
      class: "cursor",
      y1: PAD.top,
      y2: HEIGHT - PAD.bottom,
      visibility: "hidden",
    });
    this.drawing.replaceChildren(
      ...this.axes(scale, width),
      this.cursor,
      ...this.intervals(scale),
      this.line(),
      ...this.dots(),
    );
  }

  scale(width) {
    const xs = this.points.map((point) => point.x);
    let [low, high] = this.bounds ?? this.range();
    if (low === high)
      [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    const right = width - PAD.right;
    const bottom = HEIGHT - PAD.bottom;
    return {
      low,
      high,
      first,
      last,
      x: (value) =>
        first === last
          ? (PAD.left + right) / 2
          : PAD.left + 8 + ((value - first) / (last - first)) * (right - PAD.left - 16),
      y: (value) => bottom - ((value - low) / (high - low)) * (bottom - PAD.top),
    };
  }

  range() {
    const values = this.points.flatMap(({ y, low = y, high = y }) => [y, low, high]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.06;
    // Where zero is near it belongs to the picture.
    return [low >= 0 && low < (high - low) * 0.6 ? 0 : low - room, high + room];
  }

  axes(scale, width) {
    const across = ticks(scale.low, scale.high).map((value) => {
      const y = scale.y(value);
      return [
        svg("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }),
        svg(
          "text",
          { class: "tick", x: PAD.left - 8, y: y + 4, "text-anchor": "end" },
          this.format(value),
        ),
      ];
    });
    const along = ticks(scale.first, scale.last, Math.max(2, Math.floor(width / 90)))
      .filter(Number.isInteger)
      .map((value) =>
        svg(
          "text",
          { class: "tick", x: scale.x(value), y: HEIGHT - 8, "text-anchor": "middle" },
          String(value),
        ),
      );
    return [...across.flat(), ...along];
  }

  intervals(scale) {
    return this.points
      .filter((point) => point.low !== undefined)
      .map((point) => {
        const [x, top, bottom] = [scale.x(point.x), scale.y(point.high), scale.y(point.low)];
        return svg("path", {
          class: "interval",
          d: `M${x} ${top}V${bottom}M${x - 4} ${top}h8M${x - 4} ${bottom}h8`,
        });
      });
  }

  line() {
    const d = this.scaled
      .map(({ x, y }, index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`)
      .join("");
    return svg("path", { class: "line", d });
  }

  dots() {
    // Where they would touch, the line says it all.
    if (this.points.length > 30) return [];
    return this.scaled.map(({ point, x, y }) =>
      svg("circle", {
        class: `dot${point.x === this.marked ? " marked" : ""}${point.tooFew ? " few" : ""}`,
        cx: x,
        cy: y,
        r: point.x === this.marked ? 5 : 3.5,
      }),
    );
  }

  point(event) {
    if (!this.points.length || !this.scaled) return;
    const at = event.clientX - this.drawing.getBoundingClientRect().left;
    const nearest = this.scaled.reduce((best, one) =>
      Math.abs(one.x - at) < Math.abs(best.x - at) ? one : best,
    );
    this.cursor.setAttribute("x1", nearest.x);
    this.cursor.setAttribute("x2", nearest.x);
    this.cursor.setAttribute("visibility", "visible");
    this.readout.textContent = this.words(nearest.point);
  }

  /** Without a pointer: the newest. */
  rest() {
    this.cursor?.setAttribute("visibility", "hidden");
    const newest = this.points.at(-1);
    this.readout.textContent = newest ? this.words(newest) : "";
  }

  words(point) {
    const interval = this.interval(point);
    return `${this.xName} ${point.x}: ${this.format(point.y)}${interval ? ` (${interval})` : ""}`;
  }

  interval({ low, high, tooFew }) {
    if (tooFew) return "too few";
    return low === undefined ? null : `${this.format(low)} to ${this.format(high)}`;
  }

  summary() {
    if (!this.points.length) return `${this.title}: ${this.empty}`;
    const [first, last] = [this.points[0], this.points.at(-1)];
    return `${this.title} by ${this.xName}: ${this.words(first)}${first === last ? "" : `, … ${this.words(last)}`}`;
  }
}

/** A line without axes: how something went just now. */
export class Sparkline {
  constructor(label, length = 90) {
    this.label = label;
    this.length = length;
    this.values = [];
    this.node = svg("svg", {
      class: "spark",
      viewBox: `0 0 ${length} 24`,
      preserveAspectRatio: "none",
      "aria-hidden": "true",
    });
  }

  add(value) {
    this.values.push(value ?? 0);
    this.values.splice(0, this.values.length - this.length);
    const top = Math.max(...this.values, 1e-9);
    const start = this.length - this.values.length;
    const d = this.values
      .map(
        (one, index) =>
          `${index ? "L" : "M"}${start + index} ${(23 - (one / top) * 21).toFixed(1)}`,
      )
      .join("");
    this.node.replaceChildren(svg("path", { d, "vector-effect": "non-scaling-stroke" }));
  }
}
