// Small things that a page does by itself. Nothing is sent anywhere, and nothing is kept.
addEventListener("DOMContentLoaded", () => {
  const all = selector => [...document.querySelectorAll(selector)];

  // The two columns at the sides have names.
  for (const [side, name] of [[".sidebar-drawer", "All pages"], [".toc-drawer", "On this page"]])
    document.querySelector(side)?.setAttribute("aria-label", name);

  // The list of all pages shows the present one.
  const list = document.querySelector(".sidebar-scroll"), present = all(".sidebar-tree .current-page").at(-1);
  if (list && present) {
    const top = present.getBoundingClientRect().top - list.getBoundingClientRect().top - list.clientHeight / 3;
    list.scrollBy({top, behavior: "instant"});
  }

  // Words beside code stay in sight: short ones from their first line, long ones once their last line has come.
  const stick = () => {
    for (const words of all(".words")) words.style.top = `${Math.min(16, innerHeight - words.offsetHeight - 16)}px`;
  };
  addEventListener("resize", stick);
  stick();

  // A link to a place in something folded opens it.
  const unfold = () => {
    const place = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folded = place && place.closest("details");
    if (folded && !folded.open) {
      folded.open = true;
      place.scrollIntoView();
    }
  };
  addEventListener("hashchange", unfold);
  unfold();

  // An excerpt of the search is of the page's words: no code, no formulas, no tables.
  if (typeof Search != "undefined") {
    const words = Search.htmlToText;
    Search.htmlToText = (html, anchor) => {
      const page = new DOMParser().parseFromString(html, "text/html");
      for (const one of page.querySelectorAll("pre, .math, table, form, details, nav, .jumps, .file, .lines")) one.remove();
      return words(page.documentElement.outerHTML, anchor);
    };
  }

  // The page of the search has a heading.
  if (!document.querySelector("h1"))
    document.querySelector("article")?.insertAdjacentHTML("afterbegin", "<h1>Search</h1>");

  // What scrolls can be reached by the keyboard, and fades where it goes on.
  for (const one of all("article pre, .table-wrapper, .scroll, .words, .cell_output .output"))
    if (one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight) one.tabIndex = 0;
  const fade = one => {
    const mark = () => one.classList.toggle("more", one.scrollLeft + one.clientWidth < one.scrollWidth - 4);
    one.addEventListener("scroll", mark);
    new ResizeObserver(mark).observe(one.firstElementChild ?? one);            // a table that becomes cards scrolls no more
  };
  all("article pre, .table-wrapper, .scroll").forEach(fade);
  window.MathJax?.startup?.promise?.then(() => all("mjx-container[display='true'], .math-wrapper").forEach(fade));

  // On a phone the drawers close behind what was chosen in them.
  for (const link of all(".toc-drawer a"))
    link.addEventListener("click", () => document.getElementById("__toc").checked = false);

  // A block of code can be copied.
  if (navigator.clipboard)
    for (const block of all("article div.highlight:not(.numbered):not(.cell_output *)")) {
      if (/highlight-(text|default|none|output)/.test(block.parentElement.className)) continue;
      const text = block.textContent.trimEnd();
      block.insertAdjacentHTML("beforeend", "<button type='button' class='copy'>Copy</button>");
      block.lastChild.onclick = event => navigator.clipboard.writeText(text).then(() => event.target.textContent = "Copied");
    }

  // An option of a command does not break at its hyphens.
  for (const block of all(":is(.highlight-bash, .highlight-shell, .highlight-console) pre"))
    block.innerHTML = block.innerHTML.replace(/(?<=[ \n>])--?[a-z][\w-]*/g, "<span class='flag'>$&</span>");

  // A row of a wide table becomes a card on a phone: a cell says which column it is of. A row with nothing but its first cell
  // heads the next ones.
  const groups = row => row.cells.length > 2 && ![...row.cells].slice(1).some(cell => cell.textContent.trim());
  for (const table of all("article table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map(cell => cell.textContent);
    table.classList.toggle("rows", heads.length > 3);
    for (const row of table.querySelectorAll("tbody tr")) {
      if (groups(row)) {
        row.cells[0].colSpan = heads.length;
        for (const cell of [...row.cells].slice(1)) cell.remove();
        continue;
      }
      [...row.cells].forEach((cell, i) => { if (cell.textContent.trim() && heads[i]) cell.dataset.head = heads[i]; });
    }
  }

  // A column sorts a long table, once upwards, once downwards. Rows that only head others go away.
  const valueIn = (row, i) => {
    const text = row.cells[i]?.textContent.replace(/,/g, "") ?? "";
    return parseFloat(text.replace("−", "-")) || (/\d/.test(text) ? 0 : text.trim());
  };
  const before = (a, b) => typeof a == typeof b ? (a > b) - (a < b) : typeof a == "number" ? -1 : 1;
  for (const table of all("article table.docutils")) {
    const body = table.tBodies[0];
    if (body.rows.length < 15) continue;
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      const label = `sort by ${cell.textContent}`;
      cell.insertAdjacentHTML("beforeend", "<button type='button' class='sort'></button>");
      cell.lastChild.ariaLabel = label;
      cell.onclick = event => {
        if (event.target.closest("a")) return;
        const sign = cell.ariaSort == "ascending" ? -1 : 1;
        for (const one of table.tHead.rows[0].cells) one.ariaSort = one == cell ? (sign > 0 ? "ascending" : "descending") : "none";
        for (const row of [...body.rows]) if (row.cells.length == 1) row.remove();
        body.append(...[...body.rows].sort((a, b) => sign * before(valueIn(a, i), valueIn(b, i))));
      };
    });
  }

  // The study's filter: rows of claims, or small pictures, that have one verdict. Its choice stands in the address.
  const filtered = [...all(".claims tbody tr"), ...all(".small li")], choices = all(".filter input");
  const choose = value => {
    for (const one of filtered)
      one.toggleAttribute("data-hidden", value != "all" && !one.querySelector(`[data-verdict="${value}"]`));
    for (const choice of choices) choice.checked = choice.value == value;
    const address = value == "all" ? location.pathname : "?verdict=" + encodeURIComponent(value);
    if (location.protocol != "file:") history.replaceState(null, "", address + location.hash);
  };
  for (const choice of choices) choice.onchange = () => choose(choice.value);
  const asked = new URLSearchParams(location.search).get("verdict");
  if (choices.some(choice => choice.value == asked)) choose(asked);

  // A name of the table of symbols marks itself in the code.
  for (const button of all(".find")) {
    button.setAttribute("aria-pressed", false);
    button.onclick = () => {
      const on = button.getAttribute("aria-pressed") == "false";
      for (const other of all(".find")) other.setAttribute("aria-pressed", on && other.textContent == button.textContent);
      const places = all(".code span").filter(span => !span.children.length && span.textContent == button.textContent);
      for (const span of all(".code .found")) span.classList.remove("found");
      if (on) places.forEach(span => span.classList.add("found"));
      if (on) places[0]?.scrollIntoView({block: "center"});
    };
  }

  // A reader's guess stands beside what was measured, further down. The stars are those of tinypeft/course/guess.py.
  for (const form of all("form.guess"))
    form.onsubmit = event => {
      event.preventDefault();
      const tables = all("table").filter(one => one.caption?.textContent == "Guess " + form.dataset.guess);
      const [mine, measured, off] = [...tables.at(-1).rows].map(row => row.cells[1]);
      const guess = +form.querySelector("input").value, value = parseFloat(measured.textContent.replace(/,/g, "").replace("−", "-"));
      const ratio = value ? guess / value : +(guess == value);
      const stars = [[.9, 1.1], [.75, 1.25], [.5, 2]].filter(([low, high]) => ratio >= low && ratio <= high).length;
      mine.previousElementSibling.textContent = "your guess";
      mine.textContent = guess + measured.textContent.replace(/^[^ ]*/, "");
      const far = ratio >= .5 && ratio <= 2 ? `${Math.round(100 * Math.abs(ratio - 1))} %` :
        `${+Math.max(ratio, 1 / ratio).toPrecision(3)} times`;
      off.textContent = (guess == value ? "exactly right" : ratio <= 0 ? "" : `${far} too ${ratio > 1 ? "large" : "small"}`) +
        "  " + "★".repeat(stars) + "☆".repeat(3 - stars);
      form.querySelector("output").textContent = "Kept. It stands beside the measured number, below.";
    };
});
