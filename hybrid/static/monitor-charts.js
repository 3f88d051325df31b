// Charts and sparklines of the monitor's page: columns in, pictures out.

/* global uPlot */

const SPAN = { "5m": 300, "1h": 3600, "24h": 86400 };
const SVG = "http://www.w3.org/2000/svg";

export const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

export const compact = (value) => (Math.abs(value) < 10_000 ? (Math.abs(value) < 10 ? fine : count) : short).format(value);

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 1000) return `${value < 10 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} TB`;
}

/** Milliseconds as a number for people: 0.4 ms, 12 ms, 3.1 s. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

/** What each chart shows: series by label, each from the columns of a ring. */
const CHARTS = {
  clients: {
    unit: compact,
    stacked: true,
    series: [
      { label: "Polling", color: "--c2", value: (c, i) => c.polling[i] + c.sse[i], shown: (c, i) => c.polling[i] },
      { label: "SSE", color: "--c1", area: true, value: (c, i) => c.sse[i] },
    ],
  },
  events: {
    unit: (value) => `${compact(value)}/s`,
    series: [
      { label: "Delivered", color: "--c1", area: true, value: (c, i) => c.delivered[i] / c.step },
      { label: "Events", color: "--c3", value: (c, i) => c.stored[i] / c.step },
    ],
  },
  latency: {
    unit: ms,
    dots: true,
    series: [
      { label: "p99", color: "--c4", value: (c, i) => c.p99[i] },
      { label: "p95", color: "--c2", value: (c, i) => c.p95[i] },
      { label: "p50", color: "--c1", value: (c, i) => c.p50[i] },
    ],
  },
  load: {
    unit: ms,
    series: [
      { label: "Event loop", color: "--c4", area: true, value: (c, i) => c.lag[i] },
      { label: "CPU", color: "--c1", scale: "percent", unit: (v) => `${Math.round(v)} %`, value: (c, i) => (100 * c.cpu[i]) / c.step },
    ],
  },
};

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Columns with a null wherever nothing is known, so that no line bridges a hole. */
function timeline(columns, pick) {
  const at = [];
  const rows = pick.map(() => []);
  const put = (time, index) => {
    at.push(time);
    pick.forEach((value, row) => rows[row].push(index === null ? null : value(columns, index)));
  };
  columns.at.forEach((time, index) => {
    if (index && time - columns.at[index - 1] > 3 * columns.step) put(columns.at[index - 1] + columns.step, null);
    put(time, index);
  });
  return [at, ...rows];
}

function clock(range) {
  const options = range === "5m" ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { hour: "2-digit", minute: "2-digit" };
  const format = new Intl.DateTimeFormat([], { ...options, hourCycle: "h23" });
  return (seconds) => format.format(seconds * 1000);
}

export class Charts {
  constructor(root) {
    this.charts = Object.entries(CHARTS).map(([id, what]) => ({ id, what, figure: root.querySelector(`#chart-${id}`) }));
    for (const chart of this.charts) {
      chart.host = chart.figure.querySelector(".plot");
      chart.legend = chart.figure.querySelector(".legend");
      chart.details = chart.figure.querySelector("details");
      chart.details.addEventListener("toggle", () => this.#table(chart));
      for (const series of chart.what.series) {
        const item = document.createElement("li");
        const swatch = document.createElement("span");
        swatch.className = `swatch ${series.color.slice(2)}`;
        const value = document.createElement("b");
        item.append(swatch, `${series.label} `, value);
        chart.legend.append(item);
        series.told = value;
      }
    }
    new ResizeObserver(() => this.#resize()).observe(root);
  }

  /** Draw these columns; with another range, or after a change of theme, from nothing. */
  show(columns, range, anew = false) {
    this.columns = columns;
    this.range = range;
    this.clock = clock(range);
    const now = Math.max(Date.now() / 1000, columns.at.at(-1) ?? 0);
    for (const chart of this.charts) {
      const data = timeline(columns, chart.what.series.map((series) => series.value));
      if (anew || !chart.plot) {
        chart.plot?.destroy();
        chart.plot = new uPlot(this.#options(chart), data, chart.host);
      } else {
        chart.plot.setData(data, false);
      }
      chart.plot.setScale("x", { min: now - SPAN[range], max: now });
      this.#legend(chart, chart.plot.cursor.idx ?? null);
      if (chart.details.open) this.#table(chart);
    }
  }

  #options(chart) {
    const grid = { stroke: css("--grid"), width: 1 };
    const axis = { stroke: css("--quiet"), grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const { unit, series, dots } = chart.what;
    const percent = series.some((each) => each.scale === "percent");
    const fromZero = (_, __, max) => [0, max > 0 ? max * 1.15 : 1];
    return {
      width: chart.host.clientWidth || 300,
      height: 180,
      padding: [8, percent ? 0 : 12, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "monitor" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true }, y: { range: fromZero }, percent: { range: fromZero } },
      axes: [
        { ...axis, size: 26, values: (_, splits) => splits.map(this.clock), space: this.range === "5m" ? 90 : 60 },
        { ...axis, size: 58, values: (_, splits) => splits.map((value) => unit(value)) },
        ...(percent ? [{ ...axis, grid: { show: false }, scale: "percent", side: 1, size: 50, values: (_, s) => s.map((v) => `${Math.round(v)} %`) }] : []),
      ],
      series: [
        {},
        ...series.map((each) => ({
          label: each.label,
          scale: each.scale ?? "y",
          stroke: css(each.color),
          width: 1.75,
          fill: each.area ? css(`${each.color}-area`) : undefined,
          points: { show: Boolean(dots), size: 4 },
          spanGaps: false,
        })),
      ],
      bands: chart.what.stacked ? [{ series: [1, 2], fill: css(`${series[0].color}-area`) }] : [],
      hooks: { setCursor: [(plot) => this.#legend(chart, plot.cursor.idx ?? null)] },
    };
  }

  /** What the lines stand at: under the cursor, else now. */
  #legend(chart, index) {
    const at = chart.plot.data[0];
    const place = index ?? at.length - 1;
    const time = at[place];
    const source = this.columns.at.indexOf(time);
    const words = [];
    for (const series of chart.what.series) {
      const value = source < 0 ? null : (series.shown ?? series.value)(this.columns, source);
      const text = value === null ? "–" : (series.unit ?? chart.what.unit)(value);
      series.told.textContent = text;
      words.push(`${series.label} ${text}`);
    }
    const title = chart.figure.querySelector("h2").textContent;
    if (index === null) chart.host.setAttribute("aria-label", `${title}, now: ${words.join(", ")}`);
  }

  #table(chart) {
    const region = chart.details.querySelector(".scroll");
    region.replaceChildren();
    if (!chart.details.open || !this.columns) return;
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const label of ["Time", ...chart.what.series.map((each) => each.label)]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = label;
      head.append(cell);
    }
    const body = table.createTBody();
    const every = Math.max(1, Math.ceil(this.columns.at.length / 30));
    for (let index = this.columns.at.length - 1; index >= 0; index -= every) {
      const row = body.insertRow();
      row.insertCell().textContent = this.clock(this.columns.at[index]);
      for (const series of chart.what.series) {
        const value = (series.shown ?? series.value)(this.columns, index);
        row.insertCell().textContent = value === null ? "–" : (series.unit ?? chart.what.unit)(value);
      }
    }
    region.append(table);
  }

  #resize() {
    for (const { plot, host } of this.charts) {
      const width = host.clientWidth;
      if (plot && width && width !== plot.width) plot.setSize({ width, height: 180 });
    }
  }
}

/** A line and its area, in an SVG that fills its box. */
export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 100 28");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("spark");
  const [area, line] = ["area", "line"].map((name) => {
    const path = document.createElementNS(SVG, "path");
    path.classList.add(name);
    svg.append(path);
    return path;
  });
  const draw = (values) => {
    const isKnown = (value) => value !== null;
    const known = values.filter(isKnown);
    if (known.length < 2) {
      line.setAttribute("d", "");
      area.setAttribute("d", "");
      return;
    }
    const top = Math.max(...known, 1e-9);
    const place = (value, index) => `${((index / (values.length - 1)) * 100).toFixed(1)} ${(26 - (value / top) * 23).toFixed(1)}`;
    let path = "";
    let pen = "M";
    values.forEach((value, index) => {
      if (value === null) return;
      path += `${pen}${place(value, index)}`;
      pen = "L";
    });
    const [first, last] = [values.findIndex(isKnown), values.findLastIndex(isKnown)].map((index) => ((index / (values.length - 1)) * 100).toFixed(1));
    line.setAttribute("d", path);
    area.setAttribute("d", `${path}L${last} 28L${first} 28Z`);
  };
  return { svg, draw };
}
