// Seven small things that a page does by itself. Nothing is sent anywhere, and nothing is kept.
addEventListener("DOMContentLoaded", () => {
  const all = selector => [...document.querySelectorAll(selector)];

  // The two columns at the sides have names.
  for (const [side, name] of [[".sidebar-drawer", "All pages"], [".toc-drawer", "On this page"]])
    document.querySelector(side)?.setAttribute("aria-label", name);

  // The page of the search has a heading.
  if (!document.querySelector("h1"))
    document.querySelector("article")?.insertAdjacentHTML("afterbegin", "<h1>Search</h1>");

  // What scrolls can be reached by the keyboard.
  for (const one of all("article pre, .table-wrapper, .scroll, .words, .cell_output .output"))
    if (one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight) one.tabIndex = 0;

  // A row of a wide table becomes a card on a phone: a cell says which column it is of.
  for (const table of all("article table.docutils")) {
    const heads = [...table.querySelectorAll("thead th")].map(cell => cell.textContent);
    table.classList.toggle("rows", heads.length > 3);
    for (const row of table.querySelectorAll("tbody tr"))
      [...row.cells].forEach((cell, i) => { if (cell.textContent.trim() && heads[i]) cell.dataset.head = heads[i]; });
  }

  // The gallery's filter: rows of claims and small pictures of one verdict.
  const filtered = [...all(".claims tbody tr"), ...all(".small li")];
  for (const row of all(".claims tbody tr"))
    row.dataset.verdicts = row.cells[3]?.querySelector("strong")?.textContent ?? (row.cells.length == 4 ? "by construction" : "");
  for (const item of all(".small li"))
    item.dataset.verdicts = [...item.querySelectorAll(".verdict")].map(verdict => verdict.textContent).join(";");
  for (const choice of all(".filter input"))
    choice.onchange = () => filtered.forEach(one => one.toggleAttribute("data-hidden", choice.value != "all" &&
      !one.dataset.verdicts.split(";").includes(choice.value)));

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
      mine.textContent = guess + measured.textContent.replace(/^[^ ]*/, "");
      const far = ratio >= .5 && ratio <= 2 ? `${Math.round(100 * Math.abs(ratio - 1))} %` :
        `${+Math.max(ratio, 1 / ratio).toPrecision(3)} times`;
      off.textContent = (guess == value ? "exactly right" : ratio <= 0 ? "" : `${far} too ${ratio > 1 ? "large" : "small"}`) +
        "  " + "★".repeat(stars) + "☆".repeat(3 - stars);
      form.querySelector("output").textContent = "Kept. It stands beside the measured number, below.";
    };
});
