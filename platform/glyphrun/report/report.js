"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)");
  const places = [...document.querySelectorAll("[data-figure]")];

  // Plotly writes colours into SVG attributes, where custom properties do not reach.
  function resolve(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      return name ? style.getPropertyValue(name[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((item) => resolve(item, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, style)]));
    }
    return value;
  }

  function drawOne(place, style) {
    const { data, layout } = resolve(figures[place.dataset.shown ?? place.dataset.figure], style);
    // On touch screens a drag has to scroll the page.
    layout.dragmode = coarse.matches ? false : "zoom";
    layout.width = place.clientWidth;
    layout.height = place.clientHeight;
    Plotly.react(place, data, layout, { displayModeBar: false });
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    for (const place of places) drawOne(place, style);
  }

  // The plots' script is most of the page: packed, the page is a third as long.
  async function unpack() {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function drawAll() {
    if (!("DecompressionStream" in window)) {
      for (const place of places) place.textContent = "This browser is too old for the plots; the tables have their numbers.";
      return;
    }
    await unpack();
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    matchMedia("print").addEventListener("change", draw);
    let width = innerWidth;
    let pending = 0;
    addEventListener("resize", () => {
      if (innerWidth === width) return;
      width = innerWidth;
      cancelAnimationFrame(pending);
      pending = requestAnimationFrame(draw);
    });
    for (const choice of document.querySelectorAll("[data-switch] input")) {
      choice.addEventListener("change", () => {
        const name = choice.closest("[data-switch]").dataset.switch;
        const place = places.find((one) => one.dataset.figure === name);
        place.dataset.shown = choice.value;
        drawOne(place, getComputedStyle(document.documentElement));
      });
    }
  }

  function sortBy(table, rows, header) {
    const column = header.cellIndex;
    const numeric = header.classList.contains("number");
    const first = header.dataset.best === "high" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    for (const other of table.tHead.rows[0].cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", other === header ? order : "none");
    }
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.key;
    rows.sort((one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
      return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }

  // A table sorts by its headers, is searched if it has a field for it, and begins with some of its rows if they are many.
  function board(table) {
    const rows = [...table.tBodies[0].rows];
    const search = document.querySelector(`input[data-searches="${table.id}"]`);
    const found = search && document.querySelector(`output[for="${search.id}"]`);
    const begins = Number(table.dataset.begins ?? Infinity);
    let limit = rows.length > begins + 3 ? begins : Infinity;
    let matching = new Set(rows);
    const more = document.createElement("button");

    function show() {
      let shown = 0;
      for (const row of rows) row.hidden = !matching.has(row) || ++shown > limit;
      more.hidden = matching.size <= limit;
      more.textContent = `Show all ${matching.size}`;
    }
    for (const button of table.tHead.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        sortBy(table, rows, button.closest("th"));
        show();
      });
    }
    search?.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      matching = new Set(
        rows.filter((row) => {
          const text = row.textContent.toLowerCase();
          return words.every((word) => text.includes(word));
        }),
      );
      show();
      found.textContent = `${matching.size} of ${rows.length} ${found.dataset.of}`;
    });
    more.type = "button";
    more.className = "more";
    more.addEventListener("click", () => {
      limit = Infinity;
      show();
    });
    table.closest(".scroll").after(more);
    show();
  }

  // A line of parallel coordinates says whose it is to a pointer that touches it.
  function parallel(place) {
    const told = place.parentElement.querySelector("output");
    const usual = told.textContent;
    let last = null;
    function tell(line) {
      last?.classList.remove("told");
      line?.classList.add("told");
      line?.parentElement.append(line);
      told.textContent = line ? line.dataset.told : usual;
      last = line;
    }
    for (const kind of ["pointerover", "click"]) {
      place.addEventListener(kind, (event) => {
        const line = event.target.closest("[data-told]");
        if (line && line !== last) tell(line);
      });
    }
    place.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && tell(null));
  }

  drawAll();
  for (const table of document.querySelectorAll("table.board")) board(table);
  for (const place of document.querySelectorAll(".parallel")) parallel(place);

  const cards = document.querySelectorAll("[data-verdict]");
  for (const choice of document.querySelectorAll("input[name=verdict]")) {
    choice.addEventListener("change", () => {
      for (const card of cards) card.hidden = choice.value !== "all" && card.dataset.verdict !== choice.value;
    });
  }
})();
