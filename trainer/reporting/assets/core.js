// What all parts of the page share: the data, colours of the theme, numbers in words, and charts that follow the theme.
"use strict";
const Trident = (() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const charts = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = (index) => colour(`--c${index % 12}`);

  function short(value) {
    const size = Math.abs(value);
    if (!Number.isFinite(value)) return String(value);
    for (const [unit, scale] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
      if (size >= 0.9995 * scale) return trimmed((value / scale).toPrecision(3)) + unit;
    }
    if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e-").replace(".0e", "e");
    return trimmed(value.toPrecision(3));
  }
  const trimmed = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/\.?0+$/, "") : text);

  function exact(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "none";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en-US");
    if (size >= 1e4) return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
    if (size !== 0 && size < 1e-3) return value.toExponential(3);
    return trimmed(value.toPrecision(5));
  }

  function escaped(text) {
    return String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  }

  const key = (kind, shade) => `<span class="key ${kind}" style="--k:${shade}"></span>`;
  const row = (kind, shade, name, value) =>
    `<div class="row">${key(kind, shade)}<span>${escaped(name)}</span><b>${escaped(value)}</b></div>`;
  const tip = (head, rows) => `<div class="tip"><div class="head">${escaped(head)}</div>${rows.join("")}</div>`;

  const tooltip = () => ({
    confine: true, transitionDuration: 0, backgroundColor: colour("--card"), borderColor: colour("--line-strong"),
    borderWidth: 1, padding: [8, 11], textStyle: { color: colour("--ink"), fontSize: 13 },
    extraCssText: "border-radius:9px;box-shadow:0 6px 24px rgb(0 0 0 / 18%);max-width:min(420px,80vw);white-space:normal",
  });
  const axis = (more = {}) => ({
    axisLine: { show: false, lineStyle: { color: colour("--line-strong") } }, axisTick: { show: false },
    splitLine: { show: true, lineStyle: { color: colour("--grid") } },
    axisLabel: { color: colour("--muted"), fontSize: 12, hideOverlap: true },
    nameTextStyle: { color: colour("--muted"), fontSize: 12 }, ...more,
  });
  const zoomBar = (more = {}) => ({
    type: "slider", height: 22, bottom: 4, borderColor: colour("--line"), fillerColor: colour("--accent-soft"),
    backgroundColor: "transparent", dataBackground: { lineStyle: { opacity: 0 }, areaStyle: { opacity: 0 } },
    selectedDataBackground: { lineStyle: { opacity: 0 }, areaStyle: { opacity: 0 } },
    handleStyle: { color: colour("--card"), borderColor: colour("--line-strong") }, moveHandleSize: 0,
    textStyle: { color: colour("--muted"), fontSize: 11 }, brushSelect: false, showDetail: false, ...more,
  });

  // A chart is drawn when it comes near the screen, and drawn anew when the theme or a control changes.
  function add(element, option, ready) {
    const chart = { element, view: null, drawn: false };
    chart.draw = () => {
      if (!chart.drawn) return;
      if (chart.view === null) {
        chart.view = echarts.init(element, null, { renderer: "canvas" });
        if (ready) ready(chart.view);
      }
      chart.view.setOption({ animation: false, ...option() }, { notMerge: true });
    };
    charts.push(chart);
    seen.observe(element);
    return chart;
  }
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const chart = charts.find((one) => one.element === entry.target);
      if (!entry.isIntersecting || !chart) continue;
      seen.unobserve(entry.target);
      chart.drawn = true;
      chart.draw();
    }
  }, { rootMargin: "500px" });
  function drawAll() { for (const chart of charts) chart.draw(); }
  new ResizeObserver(() => { for (const chart of charts) if (chart.view) chart.view.resize(); }).observe(document.body);
  window.addEventListener("beforeprint", () => { for (const chart of charts) { chart.drawn = true; chart.draw(); } });

  function tell(text) { document.getElementById("spoken").textContent = text; }
  const isNarrow = () => window.innerWidth < 640;

  return { data, charts, colour, palette, short, exact, escaped, row, tip, tooltip, axis, zoomBar, add, drawAll, tell, isNarrow };
})();
