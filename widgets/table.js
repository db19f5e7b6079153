// Draws a table whose headers sort it. Its content arrives in a label, as that of a figure does (see figure.js).

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function header({ name, order }, sort) {
  const cell = element("th", "", { scope: "col", "aria-sort": order || "none" });
  const sign = { ascending: " \u25B2", descending: " \u25BC" }[order] ?? "";
  const button = cell.appendChild(element("button", name + sign, { title: "sort by this column; again: reverse" }));
  button.addEventListener("click", () => sort(name));
  return cell;
}

function row({ cells, links }) {
  const made = document.createElement("tr");
  for (const text of cells) made.append(element("td", text));
  for (const { kind, address } of links) {
    made.firstChild.append(element("br"), element("a", kind, { href: address, target: "_blank" }));
  }
  return made;
}

async function render({ model, el }) {
  const content = await model.widget_manager.get_model(model.get("content_id"));
  const place = el.appendChild(element("div", "", { class: "bmfl-table", tabindex: 0, role: "region" }));
  const hint = el.appendChild(element("div", "Scroll the table sideways to see all columns.", { class: "bmfl-note" }));
  Object.assign(el.style, { width: "100%", minWidth: 0 });
  const sort = (column) => {
    model.set("clicked", JSON.stringify({ column, at: performance.now() }));
    model.save_changes();
  };
  const fit = () => (hint.hidden = place.scrollWidth <= place.clientWidth + 1);
  const draw = () => {
    const { label, columns, rows } = JSON.parse(content.get("value"));
    const buttons = [...place.querySelectorAll("th button")];
    const focused = buttons.indexOf(document.activeElement);
    const [table, head, body] = ["table", "thead", "tbody"].map((tag) => element(tag));
    head.appendChild(element("tr")).append(...columns.map((column) => header(column, sort)));
    body.append(...rows.map(row));
    table.append(head, body);
    place.replaceChildren(table);
    place.setAttribute("aria-label", label);
    place.querySelectorAll("th button")[focused]?.focus();
    fit();
  };
  draw();
  content.on("change:value", draw);
  const sizes = new ResizeObserver(fit);
  sizes.observe(place);
  return () => {
    content.off("change:value", draw);
    sizes.disconnect();
  };
}

export default { render };
