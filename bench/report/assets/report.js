// Tables sort by a click on a heading: numbers by data-v, text by itself, missing values last; a second click reverses.
for (const head of document.querySelectorAll("th")) {
  const table = head.closest("table"), place = head.cellIndex;
  const sort = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const number = row => parseFloat(row.cells[place].dataset.v), text = row => row.cells[place].textContent;
    const order = (a, b) => {
      const p = number(a), q = number(b);
      if (isNaN(p) !== isNaN(q)) return isNaN(p) - isNaN(q);
      return (down ? -1 : 1) * (isNaN(p) ? text(a).localeCompare(text(b)) : p - q || 0);
    };
    const rows = [...table.tBodies[0].rows].sort(order);
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    table.tBodies[0].append(...rows);
  };
  head.classList.add("sorts");
  head.tabIndex = 0;
  head.onclick = sort;
  head.onkeydown = event => { if (event.key === "Enter") sort(); };
}
