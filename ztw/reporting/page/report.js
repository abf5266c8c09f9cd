"use strict";
// Draws the charts of the report, and shows every method's numbers at the slider's budget.
(() => {
  const all = (root, what) => [...root.querySelectorAll(what)];
  const json = (root, what) => JSON.parse(root.querySelector(what).textContent);

  // As `ztw.reporting.readable.percent`: half is rounded up
  const percent = (share) => (Math.floor(1000 * share + 0.5 + 1e-9) / 10).toFixed(1);
  const budgetName = (share) => `${+(100 * share).toPrecision(6)} %`;

  // The page's own colours, so that charts follow its theme and the printer's
  function theme(width) {
    const [ink, soft, line] = ["var(--ink)", "var(--soft)", "var(--line)"];
    const font = getComputedStyle(document.body).fontFamily;
    const axis = { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" };
    return {
      background: "transparent", font, axis, view: { stroke: null }, style: { mark: { color: ink }, name: { color: ink } },
      axisX: { grid: false, tickCount: Math.max(3, Math.round(width / 90)) },
      legend: { orient: "bottom", columns: Math.max(1, Math.floor(width / 150)), labelColor: ink, labelFontSize: 12,
        symbolStrokeWidth: 3, labelLimit: 200 },
    };
  }

  async function draw(div) {
    const spec = json(div.parentElement, ".spec"), config = theme(div.clientWidth);
    div.view = (await vegaEmbed(div, spec, { renderer: "svg", actions: false, config })).view;
  }

  const isVisible = (div) => !div.closest("details:not([open])");
  const drawVisible = (root) => Promise.all(all(root, ".chart").filter((d) => isVisible(d) && !d.view).map(draw));

  // The time of the largest measured budget within a budget; a network without exits has one time
  function timeAt(times, budget) {
    if (!times) return null;
    if ("" in times) return { ms: times[""], at: null };
    const measured = Object.keys(times).filter((name) => name !== "max" && +name <= budget + 1e-9);
    if (!measured.length) return null;
    const name = measured.reduce((one, other) => (+other > +one ? other : one));
    return { ms: times[name], at: Math.abs(+name - budget) < 1e-9 ? null : +name };
  }

  function sharesAt(shares, budget) {
    return shares.filter(([at]) => at <= budget + 1e-9).at(-1) ?? null;
  }

  function fill(cell, text, at) {
    cell.textContent = text;
    if (at !== null) {
      const small = document.createElement("small");
      small.className = "past";
      small.textContent = ` at ${budgetName(at)}`;
      cell.append(small);
    }
  }

  function showRow(row, method, place, budget) {
    const accuracy = method.accuracy[place], std = method.std[place];
    const put = (name, text) => { row.querySelector(name).textContent = text; };
    put(".accuracy", accuracy === null ? "-" : percent(accuracy) + (std === null ? "" : ` ± ${percent(std)}`));
    put(".cost", accuracy === null ? "-" : `${percent(method.relative_cost[place])} %`);
    const parameter = method.parameter[place];
    const number = method.threshold === "number" && accuracy !== null;
    put(".threshold", number ? +parameter.toPrecision(4) : method.threshold.replace("number", "-"));
    for (const cell of all(row, ".time")) {
      const found = accuracy === null ? null : timeAt(method.times[cell.dataset.batch], budget);
      fill(cell, found ? `${found.ms.toPrecision(3)} ms` : "-", found && found.at);
    }
  }

  function explorer(root) {
    const { budgets, methods } = json(root, ".data");
    const slider = root.querySelector("input[type=range]"), select = root.querySelector("select");
    const [main, exits] = all(root, ".chart"), rows = new Map(all(root, "tbody tr").map((row) => [row.dataset.method, row]));

    function showExits(budget) {
      const method = methods.find((one) => one.name === select.value);
      const found = method && sharesAt(method.shares, budget), shares = found ? found[1] : [];
      const top = [0.1, 0.2, 0.3, 0.5, 1].find((limit) => shares.every((share) => share <= limit));
      root.querySelector(".where").textContent = found ? `at ${budgetName(found[0])}` : "no threshold is cheap enough";
      // An empty data set would have no axis
      const values = (shares.length ? shares : [0]).map((share, place) => ({ exit: place + 1, share }));
      exits.view?.signal("top", top).data("shares", values).runAsync();
    }

    // Ends of the axis of accuracy, at whole 2 %, for the methods that are drawn and the static networks
    function ends(shown) {
      const values = methods
        .filter((one) => shown.includes(one.name) || !rows.get(one.name).querySelector("input"))
        .flatMap((one) => one.accuracy.flatMap((mean, at) => (mean === null ? [] : [mean - one.std[at], mean + one.std[at]])));
      if (!values.length) return [0, 1];
      return [Math.floor(50 * Math.min(...values)) / 50, Math.ceil(50 * Math.max(...values)) / 50];
    }

    function showLegend(shown) {
      root.querySelector(".legend").replaceChildren(...shown.map((name) => {
        const entry = document.createElement("span");
        entry.append(rows.get(name).querySelector("svg").cloneNode(true), name);
        return entry;
      }));
    }

    function update() {
      const place = +slider.value, budget = budgets[place], name = budgetName(budget);
      root.querySelector("output").textContent = name;
      slider.setAttribute("aria-valuetext", name);
      const found = methods.filter((one) => one.accuracy[place] !== null);
      const most = Math.max(...found.map((one) => +percent(one.accuracy[place])));
      const best = found.filter((one) => +percent(one.accuracy[place]) === most).map((one) => one.name);
      root.querySelector(".said").textContent = found.length
        ? `Within ${name} of the MACs, the most accurate: ${best.join(", ")} (${most.toFixed(1)} %).`
        : `No method fits ${name} of the MACs.`;
      for (const method of methods) {
        const row = rows.get(method.name);
        showRow(row, method, place, budget);
        row.classList.toggle("best", best.includes(method.name));
      }
      const shown = methods.map((one) => one.name).filter((name) => rows.get(name).querySelector("input")?.checked);
      const [bottom, top] = ends(shown);
      main.view?.signal("at", budget).signal("shown", shown).signal("bottom", bottom).signal("top", top).runAsync();
      showLegend(shown);
      showExits(budget);
    }

    for (const event of ["input", "change"]) root.addEventListener(event, update);
    root.update = update;
    update();
  }

  async function start() {
    await drawVisible(document);
    for (const root of all(document, ".explorer")) explorer(root);
    document.documentElement.dataset.ready = "yes";
  }

  for (const details of all(document, "details")) {
    details.addEventListener("toggle", async () => {
      await drawVisible(details);
      for (const root of all(details, ".explorer")) root.update();
    });
  }
  addEventListener("beforeprint", () => { for (const details of all(document, "details")) details.open = true; });
  start();
})();
