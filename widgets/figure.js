// Draws one plotly figure on the page. What is drawn arrives in two labels, because an anywidget that needs more than
// two seconds to start, as on a busy page, misses all later changes of its own traits.

// The kernel's colours of text, lines and background, and the variables of the page's theme that replace them.
const THEME = {
  "#222222": "--jp-ui-font-color1",
  "#e3e3e3": "--jp-border-color2",
  "#ffffff": "--jp-layout-color1",
  "#fefefe": "--bmfl-scene",
};

// Width over height of the place that a brain fills, as surface_interactive.py sets it.
const WIDTH_OVER_HEIGHT = 1.2;
const COLOUR_BAR = 80; // pixels beside it
const TOWARDS_MM = 50; // as figure.py moves names towards the camera

// All figures of a page share one copy of plotly.js, which is 5 MB.
function readPlotly(source) {
  globalThis.__bmflPlotly ??= (() => {
    const module = { exports: {} };
    new Function("module", "exports", "define", source)(module, module.exports, undefined);
    return module.exports;
  })();
  return globalThis.__bmflPlotly;
}

function themed(text, element) {
  const style = getComputedStyle(element);
  const colour = (name, otherwise) => JSON.stringify(style.getPropertyValue(name).trim() || otherwise);
  return Object.entries(THEME).reduce((all, [own, name]) => all.replaceAll(`"${own}"`, colour(name, own)), text);
}

// JupyterLab takes keys of a list or a slider for commands on cells, unless the focused element has this attribute.
function keepKeys(frame) {
  frame?.addEventListener("focusin", ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true"));
}

// Names stand in front of the brain, or its edge would cover half of a name that lies there.
function facing(trace, { x, y, z }) {
  if (trace.name !== "names" || !trace.customdata) return trace;
  const share = TOWARDS_MM / Math.hypot(x, y, z);
  const places = [x, y, z].map((part, axis) => trace.customdata.map((place) => place[axis] + share * part));
  return { ...trace, x: places[0], y: places[1], z: places[2] };
}

class Figure {
  constructor(Plotly, box, geometry, state) {
    Object.assign(this, { Plotly, box, labels: { geometry, state }, texts: {}, parts: {}, waiting: false });
  }

  // Parse the parts whose text has changed and return their names.
  read() {
    const { look, values } = JSON.parse(this.labels.state.get("value"));
    const texts = { geometry: this.labels.geometry.get("value"), look: themed(look, this.box), values };
    const changed = Object.keys(texts).filter((name) => texts[name] !== this.texts[name]);
    for (const name of changed) this.parts[name] = JSON.parse(texts[name]);
    this.texts = texts;
    return changed;
  }

  async draw() {
    this.waiting = false;
    const changed = this.read();
    const { geometry, look, values } = this.parts;
    if (changed.join() === "values") {
      const meshes = Object.keys(values);
      await this.Plotly.restyle(this.box, { intensity: meshes.map((i) => values[i].intensity) }, meshes.map(Number));
    } else if (changed.length) {
      // the bar of buttons is for turning a surface; the widget's own buttons save pictures
      const bar = look.layout.scene ? "hover" : false;
      const config = { displaylogo: false, displayModeBar: bar, plotGlPixelRatio: Math.max(1, devicePixelRatio) };
      // plotly forgets a turn by hand where the kernel has turned the camera before
      const shown = this.box.layout?.uirevision === look.layout.uirevision;
      const camera = shown ? this.box._fullLayout?.scene?._scene?.getCamera() : null;
      const eye = (camera ?? look.layout.scene?.camera)?.eye;
      const whole = look.data.map((trace, i) => ({ ...trace, ...geometry[i], ...values[i] }));
      const data = eye ? whole.map((trace) => facing(trace, eye)) : whole;
      // a copy, because plotly deletes the height of its layout when it fits a figure to its place
      await this.Plotly.react(this.box, data, this.fitted(structuredClone(look.layout)), config);
      if (camera) await this.Plotly.relayout(this.box, { "scene.camera": camera });
      this.box.setAttribute("aria-label", look.label);
    }
    if (changed.length) this.box.dataset.drawn = 1 + Number(this.box.dataset.drawn ?? 0);
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => this.draw());
  }

  async turned() {
    const camera = this.box._fullLayout.scene?._scene?.getCamera();
    const place = this.parts.look.data.findIndex((trace) => trace.name === "names" && trace.customdata);
    if (!camera || place < 0 || this.turning) return;
    const { x, y, z } = facing(this.parts.look.data[place], camera.eye);
    this.turning = true; // what follows reports a turn, too
    await this.Plotly.restyle(this.box, { x: [x], y: [y], z: [z] }, [place]);
    // where the kernel has turned the camera before, plotly goes back to that when it draws
    await this.Plotly.relayout(this.box, { "scene.camera": camera });
    this.turning = false;
  }

  // The size of a brain is set for a wide figure; in a narrow one plotly would cut its sides off.
  fitted(layout) {
    this.width = this.box.clientWidth;
    const size = layout.scene?.aspectratio;
    if (!size || !this.box.clientWidth) return layout;
    const { t, b } = layout.margin;
    const bar = this.parts.look.data.some((trace) => trace.colorbar && trace.showscale !== false) ? COLOUR_BAR : 0;
    const room = (this.box.clientWidth - bar) / (layout.height - t - b) / WIDTH_OVER_HEIGHT;
    // in a place that is not laid out yet: plotly would drop a size below zero and choose one for good
    const share = Math.min(1, Math.max(0.1, room));
    const aspectratio = Object.fromEntries(Object.entries(size).map(([axis, value]) => [axis, share * value]));
    return { ...layout, scene: { ...layout.scene, aspectratio } };
  }

  // A hidden figure has no width.
  async resize() {
    const width = this.box.clientWidth;
    // a figure may have been drawn to the width of its place and a brain fitted to an earlier one
    if (!width || Math.max(...[this.box._fullLayout.width, this.width].map((w) => Math.abs(width - w))) <= 1) return;
    await this.Plotly.Plots.resize(this.box);
    const { scene } = this.fitted(this.parts.look.layout);
    if (scene?.aspectratio) await this.Plotly.relayout(this.box, { "scene.aspectratio": scene.aspectratio });
  }
}

// On a surface plotly only reports a click if it draws while the button is down. Therefore the point under the pointer
// is kept, and sent when the button is released where it was pressed.
function sendClicks(box, model, surface) {
  const send = ({ curveNumber: trace, pointNumber: index, x, y }) => {
    model.set("clicked", JSON.stringify({ trace, index, x, y, at: performance.now() }));
    model.save_changes();
  };
  if (!surface) return box.on("plotly_click", (event) => send(event.points[0]));
  let [under, pressed] = [null, null];
  box.on("plotly_hover", (event) => (under = event.points[0]));
  box.on("plotly_unhover", () => (under = null));
  box.addEventListener("pointerdown", (event) => (pressed = event), true);
  box.addEventListener("pointerup", ({ clientX, clientY }) => {
    const moved = Math.hypot(clientX - pressed?.clientX, clientY - pressed?.clientY);
    if (under && moved < 5) send(under);
  }, true);
}

async function render({ model, el }) {
  const box = el.appendChild(document.createElement("div"));
  Object.assign(el.style, { width: "100%", minHeight: model.get("height") + "px" });
  box.setAttribute("role", "img");
  const find = (name) => model.widget_manager.get_model(model.get(name + "_id"));
  const [library, geometry, state] = await Promise.all(["library", "geometry", "state"].map(find));
  const figure = new Figure(readPlotly(library.get("value")), box, geometry, state);
  await figure.draw();
  sendClicks(box, model, Boolean(figure.parts.look.layout.scene));
  box.on("plotly_relayout", (change) => "scene.camera" in change && figure.turned());
  keepKeys(el.closest(".bmfl-frame"));
  const later = () => figure.later();
  for (const label of [geometry, state]) label.on("change:value", later);
  later(); // a change may have arrived during the first drawing
  const sizes = new ResizeObserver(() => figure.resize());
  const theme = new MutationObserver(later);
  sizes.observe(box);
  theme.observe(document.body, { attributes: true });
  return () => {
    for (const label of [geometry, state]) label.off("change:value", later);
    sizes.disconnect();
    theme.disconnect();
    figure.Plotly.purge(box);
  };
}

export default { render };
