// Curves over steps, tokens or hours: raw and smoothed, with the band of a scaling law and the events of the run.
"use strict";
Trident.curves = (() => {
  const { data, colour, palette, short, exact, row, tip, tooltip, axis, add, tell } = Trident;
  const state = { x: "steps", smoothing: data.smoothing, log: false, whole: false, range: null };
  const figures = [];
  const DASHES = ["solid", [7, 4], [2, 3]];
  const LANES = {
    save: ["Save", "triangle", "--c2"], evaluation: ["Evaluation", "circle", "--c0"], skip: ["Skip", "rect", "--c5"],
    spike: ["Spike", "diamond", "--c1"], rewind: ["Rewind", "path://M9 1 L1 5 L9 9 Z", "--c4"],
    restart: ["Restart", "roundRect", "--c8"], save_failed: ["Failed save", "triangle", "--c8"], start: ["Start", "rect", "--c11"],
    stop: ["Stop", "rect", "--c11"], end: ["End", "pin", "--c11"],
  };
  const lane = (kind) => LANES[kind] ?? [kind, "circle", "--c11"];

  // Steps of a run as tokens or hours: straight lines between the places that are known.
  function place(run, step) {
    if (state.x === "steps") return step;
    const known = data.runs[run].axis, values = known[state.x];
    if (!values.length) return null;
    let low = 0, high = known.steps.length - 1;
    if (step <= known.steps[0]) return values[0] * (state.x === "tokens" ? step / known.steps[0] : 1);
    if (step >= known.steps[high]) return values[high];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (known.steps[middle] <= step) low = middle; else high = middle;
    }
    const share = (step - known.steps[low]) / (known.steps[high] - known.steps[low]);
    return values[low] + share * (values[high] - values[low]);
  }

  function smoothed(values) {
    const weight = state.smoothing, result = [];
    let sum = 0, mass = 0;
    for (const value of values) {
      sum = sum * weight + (1 - weight) * value;
      mass = mass * weight + (1 - weight);
      result.push(sum / mass);
    }
    return result;
  }

  const shade = (chart, line) => (line.colour ? colour(line.colour) : palette(line.tint));
  const points = (line, steps, values) => steps.map((step, index) => [place(line.run, step), values[index]]);
  const drawable = (chart, pairs) => (isLog(chart) ? pairs.filter((pair) => pair[1] > 0) : pairs);
  const isLog = (chart) => chart.log || (chart.key === "loss" && state.log);

  function seriesOf(chart, line) {
    const paint = shade(chart, line);
    const base = { name: line.name, type: "line", clip: true, isCurve: true, showSymbol: false, symbol: "circle", color: paint, connectNulls: false,
      emphasis: { disabled: true }, lineStyle: { width: 1.8, color: paint, type: DASHES[line.dash ?? 0] }, z: 3 };
    if (line.kind === "band") return [bandOf(chart, line, paint)];
    if (line.kind === "points") {
      return [{ ...base, showSymbol: true, symbolSize: line.steps.length > 60 ? 5 : 8, z: 5, data: drawable(chart, points(line, line.steps, line.values)),
        itemStyle: { color: colour("--card"), borderColor: paint, borderWidth: 2 }, lineStyle: { width: 1, color: paint, opacity: .6 } }];
    }
    if (line.kind === "dash") {
      return [{ ...base, lineStyle: { width: 1.5, type: [6, 4], color: paint }, data: drawable(chart, points(line, line.steps, line.values)), z: 2 }];
    }
    if (line.kind === "left_out") {
      return [{ ...base, lineStyle: { width: 1.3, type: [2, 3], color: paint }, data: drawable(chart, points(line, line.steps, line.values)), z: 2 }];
    }
    const raw = drawable(chart, points(line, line.steps, line.values));
    if (!chart.smooth || state.smoothing === 0 || line.values.length < 8) {
      return [{ ...base, showSymbol: raw.length < 2, data: raw, lineStyle: { ...base.lineStyle, width: raw.length > 800 ? 1.1 : 1.8 } }];
    }
    const steps = line.mean_steps ?? line.steps, means = line.means ?? line.values;
    const calm = drawable(chart, points(line, steps, smoothed(means)));
    return [
      { ...base, name: `${line.name}\u0000raw`, data: raw, z: 1, silent: true, lineStyle: { width: 1, color: paint, opacity: data.runs.length > 1 ? .16 : .3, type: "solid" } },
      { ...base, data: calm, lineStyle: { ...base.lineStyle, width: 2.1 } },
    ];
  }

  function bandOf(chart, line, paint) {
    const all = line.steps.map((step, index) => [place(line.run, step), line.lows[index], line.highs[index], line.values[index]]);
    const draw = (params, api) => {
      if (params.dataIndexInside !== 0 || all.length < 2) return null;
      const upper = all.map((one) => api.coord([one[0], one[2]])), lower = all.map((one) => api.coord([one[0], one[1]])).reverse();
      const middle = all.map((one) => api.coord([one[0], one[3]]));
      return { type: "group", children: [
        { type: "polygon", shape: { points: [...upper, ...lower] }, style: { fill: paint, opacity: .16 } },
        { type: "polyline", shape: { points: middle }, style: { stroke: paint, fill: null, lineWidth: 1.4, lineDash: [5, 4] } },
      ] };
    };
    return { name: line.name, type: "custom", clip: true, renderItem: draw, data: all, encode: { x: 0, y: [1, 2], tooltip: [3] }, color: paint, z: 0 };
  }

  // The x axis is the same in all charts, so that they can be read below each other.
  function domain() {
    const ends = data.runs.flatMap((run, index) => (run.axis.steps.length ? [place(index, run.axis.steps[0]), place(index, run.axis.steps.at(-1))] : []));
    const known = ends.filter((value) => value !== null);
    if (!known.length) return [0, 1];
    const low = Math.min(...known), high = Math.max(...known);
    return low < high ? [low, high] : [low - .5, high + .5];
  }

  // The y axis shows what is in sight. The first steps, whose loss and times are far off, do not decide it.
  const WARM_UP = .03;
  function heights(figure, series) {
    const [from, to] = state.range ?? domain(), all = domain();
    const calm = state.whole || state.range ? from : all[0] + WARM_UP * (all[1] - all[0]);
    const pick = (start) => series.flatMap((one) => (one.isCurve ? one.data.filter((pair) => pair[0] >= start && pair[0] <= to).map((pair) => pair[1]) : []));
    let values = pick(calm);
    if (values.length < 2) values = pick(from);
    if (!values.length) return null;
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    if (figure.chart.limit != null && figure.chart.limit < 3 * high && figure.chart.limit > low / 3) { low = Math.min(low, figure.chart.limit); high = Math.max(high, figure.chart.limit); }
    if (isLog(figure.chart)) return { min: mantissa(low, -1), max: mantissa(high, 1), interval: undefined };
    if (figure.chart.from_zero) low = Math.min(0, low);
    if (!Number.isFinite(high - low)) return null;
    const size = (high - low) || Math.abs(high) * .1 || 1, rough = size / 4, power = 10 ** Math.floor(Math.log10(rough));
    const interval = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * .999);
    const tidy = (value) => Number(value.toPrecision(12));
    return { min: tidy(Math.floor((low - size * .01) / interval + 1e-9) * interval + (figure.chart.from_zero && low === 0 ? interval : 0) * (low - size * .01 < 0 ? 1 : 0)), max: tidy(Math.ceil((high + size * .01) / interval - 1e-9) * interval), interval };
  }
  function mantissa(value, side) {
    const power = 10 ** Math.floor(Math.log10(value)), share = value / power, steps = [1, 2, 3, 5, 7, 10];
    return Number((power * (side > 0 ? steps.find((one) => one >= share * .9999) : steps.findLast((one) => one <= share * 1.0001))).toPrecision(6));
  }

  const hasLanes = (chart) => chart.key === "loss" && data.lanes.length > 0;

  function option(figure) {
    const { chart, off } = figure;
    const shown = chart.lines.filter((line) => !off.has(line.name));
    const series = shown.flatMap((line) => seriesOf(chart, line));
    const [from, to] = domain(), range = heights(figure, series);
    const lanes = hasLanes(chart) ? data.lanes : [];
    const narrow = Trident.isNarrow(), foot = lanes.length ? lanes.length * 19 + 34 : 26;
    const left = 52, lanesLeft = lanes.length ? (narrow ? 74 : 84) : left;
    const xAxis = axis({ type: "value", min: from, max: to, splitLine: { show: false }, axisLine: { show: true, lineStyle: { color: colour("--line-strong") } },
      axisLabel: { color: colour("--muted"), fontSize: 12, hideOverlap: true, formatter: short, showMaxLabel: false },
      axisPointer: { show: true, snap: false, lineStyle: { color: colour("--muted"), type: [3, 3] }, label: { show: false } } });
    const yAxis = axis({ type: isLog(chart) ? "log" : "value", scale: true, ...(range ?? {}), axisLabel: { color: colour("--muted"), fontSize: 12, formatter: short, hideOverlap: true } });
    const grids = [{ left: lanesLeft, right: 14, top: 10, bottom: foot }], xs = [xAxis], ys = [yAxis];
    if (lanes.length) {
      grids.push({ left: lanesLeft, right: 14, height: lanes.length * 19, bottom: 24 });
      xs[0] = { ...xAxis, axisLabel: { show: false } };
      xs.push({ ...xAxis, gridIndex: 1 });
      ys.push(axis({ type: "category", gridIndex: 1, inverse: true, data: lanes.map((kind) => lane(kind)[0]), axisLabel: { color: colour("--muted"), fontSize: 11, interval: 0 } }));
      series.push(...lanes.map((kind) => eventSeries(kind, lanes)));
    }
    const marks = data.breaks.map((one) => ({ xAxis: place(one.run, one.step), lineStyle: { color: colour(lane(one.kind)[2]), opacity: .5, width: 1, type: [2, 3] } }));
    const first = series.find((one) => one.type === "line");
    if (first && marks.length && data.runs.length === 1) {
      first.markLine = { symbol: "none", silent: true, animation: false, label: { show: false }, data: marks.filter((one) => one.xAxis !== null) };
    }
    if (first && chart.limit !== null && chart.limit !== undefined) {
      first.markLine = first.markLine ?? { symbol: "none", silent: true, animation: false, label: { show: false }, data: [] };
      first.markLine.data.push({ yAxis: chart.limit, lineStyle: { color: colour("--warn"), type: [6, 4], width: 1.3 }, label: { show: true, position: "insideStartTop", color: colour("--warn"), fontSize: 12, formatter: chart.limit_name } });
    }
    return {
      grid: grids, xAxis: xs, yAxis: ys, series, axisPointer: lanes.length ? { link: [{ xAxisIndex: "all" }] } : {},
      tooltip: { ...tooltip(), trigger: "axis", formatter: (found) => told(chart, found) },
      dataZoom: [{ type: "inside", xAxisIndex: xs.map((_, index) => index), filterMode: "filter", zoomOnMouseWheel: "ctrl", moveOnMouseMove: "shift",
        moveOnMouseWheel: false, preventDefaultMouseMove: false, ...(state.range ? { startValue: state.range[0], endValue: state.range[1] } : {}) }],
      toolbox: { show: false, feature: { dataZoom: { yAxisIndex: false, filterMode: "filter", brushStyle: { color: colour("--accent"), opacity: .14 } } } },
    };
  }

  function eventSeries(kind, lanes) {
    const [, symbol, name] = lane(kind);
    const found = data.events.filter((one) => one.kind === kind && one.step !== null);
    return { name: `\u0000event`, type: "scatter", xAxisIndex: 1, yAxisIndex: 1, symbol, symbolSize: 10, z: 6, itemStyle: { color: colour(name), opacity: .9 },
      data: found.map((one) => ({ value: [place(one.run, one.step), lanes.indexOf(kind)], text: one.text, step: one.step, kind })) };
  }

  const unitOf = () => ({ steps: "step", tokens: "tokens", hours: "hours" })[state.x];
  const heading = (value) => (state.x === "steps" ? `step ${exact(Math.round(value))}` : `${state.x === "tokens" ? short(value) : exact(Number(value.toPrecision(4)))} ${unitOf()}`);

  function told(chart, found) {
    const rows = [];
    for (const one of found) {
      if (one.seriesName === "\u0000event") { rows.push(row("block", one.color, lane(one.data.kind)[0], one.data.text)); continue; }
      if (one.seriesName.endsWith("\u0000raw")) continue;
      const line = chart.lines.find((other) => other.name === one.seriesName);
      const value = line?.kind === "band" ? `${exact(one.value[1])} to ${exact(one.value[2])}` : exact(one.value[1]);
      rows.push(row(line?.kind === "band" ? "band" : "", one.color, one.seriesName, value));
    }
    const at = found[0]?.axisValue;
    return rows.length ? tip(heading(at), rows.slice(0, 16)) : "";
  }

  // The same stretch in all curves.
  function zoom(range) {
    state.range = range;
    for (const figure of figures) {
      const { part } = figure;
      if (!part.view) continue;
      const shown = figure.chart.lines.filter((line) => !figure.off.has(line.name)).flatMap((line) => seriesOf(figure.chart, line));
      const tall = heights(figure, shown);
      if (tall) part.view.setOption({ yAxis: [tall] });
      part.view.dispatchAction(range ? { type: "dataZoom", startValue: range[0], endValue: range[1] } : { type: "dataZoom", start: 0, end: 100 });
    }
    document.getElementById("reset-zoom").disabled = range === null;
  }
  let isZooming = false;
  function follow(view) {
    view.on("datazoom", () => {
      if (isZooming) return;
      isZooming = true;
      const found = view.getOption().dataZoom[0];
      zoom(found.start <= 0 && found.end >= 100 ? null : [found.startValue, found.endValue]);
      isZooming = false;
    });
    view.getZr().on("dblclick", () => { isZooming = true; zoom(null); isZooming = false; });
    if (window.matchMedia("(pointer: fine)").matches) {
      const arm = () => view.dispatchAction({ type: "takeGlobalCursor", key: "dataZoomSelect", dataZoomSelectActive: true });
      setTimeout(arm, 0);
      view.on("finished", () => { if (!view.armed) { view.armed = true; arm(); } });
    }
  }

  // Arrows move along a curve, + and - zoom, 0 shows all of it.
  function keys(figure, event) {
    const line = figure.chart.lines.find((one) => one.kind === "line" && !figure.off.has(one.name)) ?? figure.chart.lines[0];
    if (!line || !figure.part.view) return;
    const last = line.steps.length - 1, stride = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1;
    const moves = { ArrowRight: stride, ArrowLeft: -stride, Home: -last, End: last };
    if (event.key in moves) {
      figure.at = Math.min(last, Math.max(0, (figure.at ?? (moves[event.key] > 0 ? -1 : last + 1)) + moves[event.key]));
      const x = place(line.run, line.steps[figure.at]), pixel = figure.part.view.convertToPixel({ xAxisIndex: 0, yAxisIndex: 0 }, [x, line.values[figure.at]]);
      figure.part.view.dispatchAction({ type: "showTip", x: pixel[0], y: Math.max(12, pixel[1]) });
      tell(`${heading(x)}: ${line.name} ${exact(line.values[figure.at])}`);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const found = figure.part.view.getOption().dataZoom[0], from = found.startValue, to = found.endValue;
      const middle = (from + to) / 2, half = (to - from) * (event.key === "-" ? 1 : .25);
      zoom([middle - half, middle + half]);
    } else if (event.key === "0") zoom(null);
    else if (event.key === "Escape") figure.part.view.dispatchAction({ type: "hideTip" });
    else return;
    event.preventDefault();
  }

  function legend(lines, element, toggle) {
    for (const line of lines) {
      const item = document.createElement("li"), button = document.createElement("button"), key = document.createElement("span"), name = document.createElement("span");
      key.className = `key ${{ band: "band", points: "points", dash: "dash", left_out: "dash" }[line.kind] ?? (line.dash ? "dash" : "")}`;
      key.style.setProperty("--k", `var(${line.colour ?? `--c${line.tint % 12}`})`);
      name.className = "name"; name.textContent = line.name; name.title = line.name;
      button.type = "button"; button.setAttribute("aria-pressed", "true"); button.append(key, name);
      button.addEventListener("click", () => {
        const isOff = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!isOff));
        toggle(line.name, isOff);
      });
      item.append(button); element.append(item);
    }
  }

  function start() {
    for (const element of document.querySelectorAll("[data-curve]")) {
      const figure = { chart: data.curves[element.dataset.curve], off: new Set() };
      if (hasLanes(figure.chart)) element.style.height = `${(Trident.isNarrow() ? 250 : 340) + data.lanes.length * 19}px`;
      figure.part = add(element, () => option(figure), follow);
      element.addEventListener("keydown", (event) => keys(figure, event));
      const list = element.parentElement.querySelector(".legend");
      const turn = (one, name, isOff) => { if (isOff) one.off.add(name); else one.off.delete(name); one.part.draw(); };
      if (list) legend(figure.chart.lines, list, (name, isOff) => turn(figure, name, isOff));
      figures.push(figure);
    }
    const shared = document.getElementById("runs-legend");
    if (shared) {
      const lines = data.runs.map((run, index) => ({ name: run.name, tint: index, dash: Math.floor(index / 12) % 3 }));
      legend(lines, shared, (name, isOff) => { for (const one of figures) { if (isOff) one.off.add(name); else one.off.delete(name); one.part.draw(); } });
    }
    const controls = document.getElementById("controls");
    if (!controls) return;
    const redraw = () => { for (const { part } of figures) part.draw(); };
    controls.addEventListener("input", (event) => {
      const { name, value, checked } = event.target;
      if (name === "x") { state.x = value; state.range = null; document.getElementById("reset-zoom").disabled = true; }
      if (name === "log") state.log = checked;
      if (name === "whole") state.whole = checked;
      if (name === "smoothing") { state.smoothing = Number(value); document.getElementById("smoothing-value").textContent = Number(value).toFixed(2); }
      redraw();
    });
    document.getElementById("reset-zoom").addEventListener("click", () => zoom(null));
  }
  return { start, zoom, state, figures };
})();
