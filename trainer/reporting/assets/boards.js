// What is no curve: the measured step of the pipeline, memory by stage, and the points of a sweep.
"use strict";
Trident.boards = (() => {
  const { data, colour, palette, short, exact, row, tip, tooltip, axis, zoomBar, add, tell } = Trident;

  const ms = (value) => (value >= 1000 ? `${exact(value / 1000)} s` : `${exact(value)} ms`);

  function timeline(element, found) {
    const kinds = found.kinds, has = found.planned.length > 0;
    const rows = found.rows.length, narrow = Trident.isNarrow();
    const height = Math.max(16, Math.min(46, Math.floor(460 / rows)));
    const top = 26, between = 44, left = narrow ? 54 : 78;
    const measured = rows * height, planned = has ? Math.max(rows * Math.round(height * .62), 40) : 0;
    element.style.height = `${top + measured + (has ? between + planned : 0) + 66}px`;
    const tint = (kind) => colour(kinds[kind].colour);
    const ink = (name) => { // the ink that is read better on a colour
      const channels = name.match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16) / 255).map((value) => (value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4));
      return .2126 * channels[0] + .7152 * channels[1] + .0722 * channels[2] > .3 ? "#0d1017" : "#ffffff";
    };
    const draw = (area) => (params, api) => {
      const from = api.coord([api.value(2), api.value(0)]), to = api.coord([api.value(3), api.value(0)]);
      const tall = api.size([0, 1])[1] * (area === 0 ? .82 : .8);
      const box = echarts.graphic.clipRectByRect({ x: from[0], y: from[1] - tall / 2, width: Math.max(to[0] - from[0], .6), height: tall },
        { x: params.coordSys.x, y: params.coordSys.y, width: params.coordSys.width, height: params.coordSys.height });
      if (!box) return null;
      const kind = kinds[api.value(1)], fill = tint(api.value(1)), number = api.value(4);
      const isPass = kind.is_pass, gap = box.width > 3 ? .6 : 0;
      const children = [{ type: "rect", shape: { x: box.x + gap / 2, y: box.y, width: Math.max(box.width - gap, .4), height: box.height, r: box.width > 8 ? 3 : 0 },
        style: { fill, opacity: kind.is_wait ? .28 : area === 1 ? .72 : 1 } }];
      if (isPass && number >= 0 && box.width > String(number).length * 6.6 + 4 && box.height > 11) {
        children.push({ type: "text", style: { text: String(number), x: box.x + box.width / 2, y: box.y + box.height / 2, align: "center", verticalAlign: "middle", fill: ink(fill), font: `600 ${Math.min(12, box.height - 3)}px system-ui` } });
      }
      return { type: "group", children };
    };
    const option = () => {
      const x = axis({ type: "value", min: 0, max: found.duration_ms, axisLabel: { color: colour("--muted"), fontSize: 12, formatter: (value) => (value >= 1000 ? `${short(value / 1000)} s` : `${short(value)} ms`), hideOverlap: true, showMaxLabel: false }, splitLine: { show: true, lineStyle: { color: colour("--grid") } } });
      const y = (index, gridIndex) => axis({ type: "category", gridIndex, inverse: true, data: found.rows, splitLine: { show: false }, axisLabel: { color: index ? colour("--muted") : colour("--ink"), fontSize: rows > 16 ? 10 : 12, hideOverlap: true } });
      const grids = [{ left, right: 16, top, height: measured }], xs = [{ ...x, gridIndex: 0 }], ys = [y(0, 0)];
      const title = (text, above) => ({ text, left: 0, top: above, textStyle: { fontSize: 12, fontWeight: 600, color: colour("--muted") } });
      const titles = [title("Measured", 4)];
      const series = [{ type: "custom", renderItem: draw(0), data: found.spans, encode: { x: [2, 3], y: 0 }, clip: true, progressive: 4000 }];
      if (has) {
        grids.push({ left, right: 16, top: top + measured + between, height: planned });
        titles.push(title(narrow ? "Planned, with the measured passes" : "Planned: the schedule alone, with the measured passes", top + measured + between - 22));
        xs.push({ ...x, gridIndex: 1, axisLabel: { ...x.axisLabel } }); ys.push(y(1, 1));
        series.push({ type: "custom", xAxisIndex: 1, yAxisIndex: 1, renderItem: draw(1), data: found.planned, encode: { x: [2, 3], y: 0 }, clip: true, progressive: 4000 });
        xs[0] = { ...xs[0], axisLabel: { ...x.axisLabel } };
      }
      return {
        title: titles, grid: grids, xAxis: xs, yAxis: ys, series,
        tooltip: { ...tooltip(), trigger: "item", formatter: ({ value, seriesIndex, color }) => {
          const kind = kinds[value[1]], about = [row("block", colour(kind.colour), kind.name, ms(value[3] - value[2]))];
          if (value[4] >= 0) about.push(row("", "transparent", "micro-batch", String(value[4])));
          if (value[5] >= 0) about.push(row("", "transparent", "stage", String(value[5])));
          about.push(row("", "transparent", seriesIndex ? "planned from" : "from", ms(value[2])), row("", "transparent", "to", ms(value[3])));
          if (value[6]) about.push(row("", "transparent", "message", value[6]));
          return tip(found.rows[value[0]], about);
        } },
        dataZoom: [{ type: "inside", xAxisIndex: xs.map((_, index) => index), filterMode: "weakFilter", zoomOnMouseWheel: "ctrl", moveOnMouseMove: true, preventDefaultMouseMove: false, minSpan: .05 },
          zoomBar({ xAxisIndex: xs.map((_, index) => index), filterMode: "weakFilter", left, right: 16 })],
      };
    };
    const part = add(element, option);
    const window_ = () => part.view.getOption().dataZoom[0];
    const go = (start, end) => {
      const width = Math.min(100, end - start), from = Math.max(0, Math.min(100 - width, start));
      part.view.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, start: from, end: from + width });
      part.view.dispatchAction({ type: "dataZoom", dataZoomIndex: 1, start: from, end: from + width });
      tell(`Showing ${ms(found.duration_ms * from / 100)} to ${ms(found.duration_ms * (from + width) / 100)} of the step`);
    };
    const act = (what) => {
      if (!part.view) return;
      const { start, end } = window_(), middle = (start + end) / 2, half = (end - start) / 2;
      if (what === "in") go(middle - half / 2, middle + half / 2);
      if (what === "out") go(middle - half * 2, middle + half * 2);
      if (what === "left") go(start - half / 2, end - half / 2);
      if (what === "right") go(start + half / 2, end + half / 2);
      if (what === "all") go(0, 100);
    };
    const named = { "+": "in", "=": "in", "-": "out", "0": "all", ArrowLeft: "left", ArrowRight: "right" };
    element.addEventListener("keydown", (event) => { if (named[event.key]) { act(named[event.key]); event.preventDefault(); } });
    for (const button of element.closest("figure").querySelectorAll("[data-act]")) button.addEventListener("click", () => act(button.dataset.act));
  }

  function memory(element, found) {
    const shown = found.stages.length;
    element.style.height = `${shown * 42 + 64}px`;
    add(element, () => {
      const narrow = Trident.isNarrow();
      const series = found.purposes.map((one) => ({ name: one.name, type: "bar", stack: "predicted", barWidth: "62%", color: colour(one.colour), data: one.gib, emphasis: { disabled: true }, itemStyle: { borderColor: colour("--card"), borderWidth: .7 } }));
      const measured = found.measured.map((value, index) => (value === null ? null : [value, index])).filter(Boolean);
      series.push({ name: "measured", type: "scatter", symbol: "rect", symbolSize: [4, 30], data: measured, color: colour("--ink"), z: 6,
        label: { show: !narrow, position: "right", formatter: ({ value }) => `${exact(Number(value[0].toPrecision(3)))} GiB`, color: colour("--ink"), fontSize: 12, textBorderColor: colour("--card"), textBorderWidth: 3 } });
      const most = Math.max(...found.predicted, ...measured.map((one) => one[0]));
      // The device's own size is drawn where the bars reach into its neighbourhood.
      const near = found.device_gib && found.device_gib < most * 2.2;
      if (near) series[0].markLine = { symbol: "none", silent: true, animation: false, data: [{ xAxis: found.device_gib }], lineStyle: { color: colour("--bad"), type: [6, 4], width: 1.4 }, label: { formatter: `device ${exact(Number(found.device_gib.toPrecision(3)))} GiB`, color: colour("--bad"), fontSize: 12, position: "start" } };
      return {
        grid: { left: narrow ? 58 : 72, right: narrow ? 18 : 76, top: 26, bottom: 30 }, series,
        xAxis: axis({ type: "value", min: 0, max: near ? found.device_gib * 1.02 : most * 1.04, axisLabel: { color: colour("--muted"), fontSize: 12, formatter: (value) => `${short(value)} GiB`, hideOverlap: true, showMaxLabel: false } }),
        yAxis: axis({ type: "category", inverse: true, data: found.stages, splitLine: { show: false }, axisLabel: { color: colour("--ink"), fontSize: 12 } }),
        tooltip: { ...tooltip(), trigger: "axis", axisPointer: { type: "shadow", shadowStyle: { color: colour("--muted"), opacity: .08 } }, formatter: (of) => {
          const index = of[0].dataIndex, rows = found.purposes.filter((one) => one.gib[index] > 0).map((one) => row("block", colour(one.colour), one.name, `${exact(Number(one.gib[index].toPrecision(3)))} GiB`));
          rows.push(row("", colour("--muted"), "predicted peak", `${exact(Number(found.predicted[index].toPrecision(3)))} GiB`));
          if (found.measured[index] !== null) rows.push(row("", colour("--ink"), "measured", `${exact(Number(found.measured[index].toPrecision(3)))} GiB`));
          return tip(found.stages[index], rows);
        } },
      };
    });
  }

  function sweep(element, found) {
    add(element, () => {
      const narrow = Trident.isNarrow(), last = found.axes.length - 1;
      const axes = found.axes.map((one, dim) => ({
        dim, name: narrow ? one.leaf : one.name, nameLocation: dim === last && found.lower_is_better ? "start" : "end", nameGap: 14, type: one.kind === "category" ? "category" : one.kind, data: one.kind === "category" ? one.values : undefined, scale: true,
        inverse: dim === last && found.lower_is_better, logBase: 10,
        nameTextStyle: { color: dim === last ? colour("--accent") : colour("--ink"), fontSize: 12, fontWeight: dim === last ? 700 : 500 },
        axisLabel: { color: colour("--muted"), fontSize: 11, formatter: one.kind === "category" ? undefined : short, textBorderColor: colour("--card"), textBorderWidth: 3, showMinLabel: true, showMaxLabel: true, hideOverlap: true },
      }));
      const values = found.points.map((one) => one.values[last]).filter((value) => value !== null).sort((one, other) => (found.lower_is_better ? one - other : other - one));
      const good = colour("--c0"), bad = colour("--c1");
      // By place and not by value: one run that went wrong would make all others look alike.
      const mixed = (value) => {
        const part = values.indexOf(value) / Math.max(1, values.length - 1), take = (name, at) => parseInt(name.slice(1 + 2 * at, 3 + 2 * at), 16);
        return `#${[0, 1, 2].map((at) => Math.round(take(good, at) * (1 - part) + take(bad, at) * part).toString(16).padStart(2, "0")).join("")}`;
      };
      const points = found.points.filter((one) => one.values.every((value) => value !== null));
      return {
        parallel: { left: narrow ? 44 : 96, right: narrow ? 48 : 96, top: 44, bottom: 22,
          parallelAxisDefault: { axisLine: { lineStyle: { color: colour("--line-strong"), width: 1.5 } }, axisTick: { show: false }, splitLine: { show: false }, areaSelectStyle: { width: 18, borderColor: colour("--accent"), color: colour("--accent"), opacity: .2 } } },
        parallelAxis: axes,
        series: points.map((one, index) => ({ type: "parallel", name: one.name,  inactiveOpacity: .06, activeOpacity: 1, data: [one.values], z: one.is_best ? 10 : 2,
          lineStyle: { width: one.is_best ? 3.4 : 1.7, color: one.is_best ? colour("--good") : mixed(one.values[last]), opacity: one.is_best ? 1 : .85 }, emphasis: { lineStyle: { width: 4, opacity: 1 } } })),
        tooltip: { ...tooltip(), trigger: "item", formatter: ({ seriesIndex }) => tip(points[seriesIndex].name, found.axes.map((one, dim) => row("", dim === last ? colour("--accent") : "transparent", one.name, typeof points[seriesIndex].values[dim] === "number" ? exact(points[seriesIndex].values[dim]) : points[seriesIndex].values[dim]))) },
      };
    });
  }

  function start() {
    const drawers = { timeline, memory, sweep };
    for (const element of document.querySelectorAll("[data-board]")) {
      const found = data.boards[element.dataset.board];
      drawers[found.kind](element, found);
    }
  }
  return { start };
})();
