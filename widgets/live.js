// One plotly figure on a page. The kernel sends its traces and layout as text; the page draws the present state.
// Stands behind meshes.js, in one script.

// What the kernel writes for ink, lines and paper takes the colours of the page's theme, so that a figure fits a dark
// page as well as a light one.
const THEMED = {
  "#222222": "--jp-ui-font-color1",
  "#e3e3e3": "--jp-border-color2",
  "#ffffff": "--jp-layout-color1",
};

const CODE = "var Plotly=(()=>{";

function load(source) {
  // The file's code stands in two functions more than it needs. It fails on purpose here and there to learn what the
  // browser can do, and each first time the browser reads again all functions around that place, 5 MB each: without
  // the outer two it is there in half the time.
  const [from, to] = [source.indexOf(CODE) + CODE.length, source.lastIndexOf("})();")];
  if (from >= CODE.length && to > from) {
    try {
      const found = new Function('"use strict";' + source.slice(from, to))();
      if (found?.react) return found;
    } catch {
      // then as it stands
    }
  }
  const module = { exports: {} };
  new Function("module", "exports", "define", source)(module, module.exports, undefined);
  return module.exports;
}

// every figure of a page shares one copy; it is 5 MB
function library(shelf) {
  // what the page has to do first goes first
  globalThis.__bmflPlotly ??= new Promise((done) =>
    setTimeout(() => {
      drawnByProcessor();
      done(load(shelf.get("source")));
    }),
  );
  return globalThis.__bmflPlotly;
}

function colours(element) {
  const style = getComputedStyle(element);
  return Object.entries(THEMED).map(([fixed, name]) => [`"${fixed}"`, style.getPropertyValue(name).trim() || fixed]);
}

function ownKeys(frame) {
  // else JupyterLab takes the keys of a list or a slider, an arrow or an x, for commands on its cells; it looks for
  // this mark from the focused element upwards, and most of its commands are bound to that element itself
  if (!frame || frame.dataset.ownKeys) return;
  frame.dataset.ownKeys = "true";
  frame.addEventListener("focusin", (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "true"));
}

// What the kernel told of a figure: texts by name, "look" and "key", and of each trace "b0", "t0", "v0", "b1", ...
class Told {
  constructor(element, still, news) {
    Object.assign(this, { element, still, news, known: {}, texts: {}, seldom: null, theme: colours(element) });
  }

  // what is to be shown now, as texts that can be compared
  read() {
    if (this.seldom !== this.still.get("value")) {
      this.seldom = this.still.get("value");
      this.texts = JSON.parse(this.seldom);
    }
    Object.assign(this.texts, JSON.parse(this.news.get("value")));
    const { change, ...shown } = this.texts;
    this.change = String(change);
    return { ...shown, look: [shown.look, JSON.stringify(this.theme)] };
  }

  part(name) {
    const text = this.texts[name] ?? "{}";
    if (this.known[name]?.text !== text) {
      const themed = this.theme.reduce((found, [from, to]) => found.replaceAll(from, JSON.stringify(to)), text);
      this.known[name] = { text, value: JSON.parse(themed) };
    }
    return this.known[name].value;
  }

  traces() {
    const all = (i) => Object.assign({ uid: "trace" + i }, ...["b", "t", "v"].map((place) => this.part(place + i)));
    return [...Array(this.texts.n_traces).keys()].map(all);
  }

  // whether the page has other colours than before
  dressed() {
    const now = colours(this.element);
    if (JSON.stringify(now) === JSON.stringify(this.theme)) return false;
    this.theme = now;
    this.known = {};
    return true;
  }
}

// Clicks on a figure, told to the kernel. On a surface plotly only hears of one while the button is down at the moment
// it draws, which a short click on a busy page misses: what lies under the pointer is remembered, and sent when the
// button is let go in the same place.
class Clicks {
  constructor(box, model, solid) {
    Object.assign(this, { box, model, solid, under: null, pressed: null });
    box.addEventListener("pointerdown", (event) => (this.pressed = event.button === 0 ? event : null), true);
    box.addEventListener("pointerup", (event) => this.released(event), true);
  }

  // once plotly has drawn in the box
  listen() {
    this.box.on("plotly_click", (event) => this.solid() || this.send(event.points[0]));
    for (const name of ["plotly_hover", "plotly_click"]) this.box.on(name, (event) => (this.under = event.points[0]));
    this.box.on("plotly_unhover", () => (this.under = null));
  }

  released({ clientX, clientY }) {
    const from = this.pressed;
    this.pressed = null;
    if (!from || !this.solid() || Math.hypot(clientX - from.clientX, clientY - from.clientY) > 4) return;
    // plotly looks for what is under the pointer in its next frame
    requestAnimationFrame(() => requestAnimationFrame(() => this.under && this.send(this.under)));
  }

  send(point) {
    const index = typeof point.pointNumber === "number" ? point.pointNumber : -1;
    const told = { trace: point.curveNumber, index, x: point.x, y: point.y, at: performance.now() };
    this.model.set("clicked", JSON.stringify(told));
    this.model.save_changes();
  }
}

// The figure's elements: title and colour bar of a surface, and between them the box plotly draws in.
class Frame {
  constructor(element, height) {
    const make = (name) => Object.assign(document.createElement("div"), { className: name });
    [this.whole, this.title, this.box, this.bar] = ["bmfl-figure", "bmfl-key-title", "", "bmfl-key-bar"].map(make);
    this.whole.append(this.title, this.box, this.bar);
    this.whole.style.minHeight = height + "px";
    this.whole.setAttribute("role", "img");
    element.style.width = "100%";
    element.appendChild(this.whole);
  }

  label(key, look) {
    this.title.innerHTML = key.title ?? "";
    this.bar.innerHTML = key.bar ?? "";
    const title = this.title.textContent || (look.title?.text ?? "").replace(/<[^>]*>/g, " ").trim() || "figure";
    const ticks = [...this.bar.querySelectorAll("div > span")].map((tick) => tick.textContent);
    const unit = this.bar.lastElementChild?.textContent ?? "";
    const range = ticks.length ? `, colours from ${ticks[0]} to ${ticks.at(-1)} ${unit}` : "";
    this.whole.setAttribute("aria-label", title + range.trimEnd());
  }
}

// A figure that is brought up to date by as little as the change needs.
class Figure {
  constructor(Plotly, model, frame, told) {
    Object.assign(this, { Plotly, model, frame, told, box: frame.box, painted: null, waiting: false });
    this.surface = new Surface(this.box);
    this.clicks = new Clicks(this.box, model, () => this.solid);
  }

  get solid() {
    return Boolean(this.surface.scene);
  }

  draw() {
    this.waiting = false;
    if (this.gone) return;
    ownKeys(this.told.element.closest(".bmfl-frame"));
    const [before, state] = [this.painted, this.told.read()];
    // a figure that stays as it is costs nothing, one of which only values of a surface change little
    const changed = Object.keys(state).filter((name) => String(before?.[name]) !== String(state[name]));
    const part = (name) => this.told.part(name);
    if (!before || changed.includes("key") || changed.includes("look")) this.frame.label(part("key"), part("look"));
    const news = before && this.surface.news(changed.filter((name) => name !== "key"), part);
    if (news) this.surface.recolour(news);
    else this.layOut();
    this.painted = state;
    this.box.dataset.change = this.told.change;
  }

  layOut() {
    const [data, first] = [this.told.traces(), !this.box.dataset.drawn];
    const layout = () => structuredClone(this.told.part("look"));
    const react = () => this.Plotly.react(this.box, data, layout(), this.config());
    const done = first && drawnByProcessor() ? sparing(react) : react();
    if (first) this.clicks.listen();
    done.catch(() => {
      // what cannot be changed into the new figure is drawn anew
      this.Plotly.purge(this.box);
      this.Plotly.newPlot(this.box, data, layout(), this.config());
      this.clicks.listen();
    });
    this.surface.keepStill(this.model.get("fixed"));
    this.surface.spare();
    this.surface.plot?.gl.flush();
    this.box.dataset.drawn = String(1 + Number(this.box.dataset.drawn ?? 0));
  }

  // the bar of buttons is for turning a surface; the widget itself saves pictures
  config() {
    return {
      displaylogo: false,
      displayModeBar: this.told.part("look").scene ? "hover" : false,
      plotGlPixelRatio: Math.max(1, window.devicePixelRatio),
    };
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    // all figures of a widget are drawn in one frame, a surface first: it is computed while the others are drawn
    const ask = () => requestAnimationFrame(() => this.draw());
    if (this.solid) ask();
    else queueMicrotask(ask);
  }

  // the page's width is a whole number, plotly's need not be; without any the figure is hidden
  resize() {
    const width = this.box.clientWidth;
    if (width && !(Math.abs(width - this.box._fullLayout?.width) <= 1)) this.Plotly.Plots.resize(this.box);
  }

  remove() {
    this.gone = true;
    this.Plotly.purge(this.box);
  }
}

// the shelf is sent before the first figure is made, so that the page reads the library while the kernel works
function initialize({ model }) {
  if (model.get("source")) library(model);
}

async function render({ model, el }) {
  const frame = new Frame(el, model.get("height"));
  const get = (name) => model.widget_manager.get_model(model.get(name));
  const ids = ["still_id", "news_id", "beat_id"];
  const [Plotly, still, news, beat] = await Promise.all([get("library").then(library), ...ids.map(get)]);
  const told = new Told(el, still, news);
  const figure = new Figure(Plotly, model, frame, told);
  const later = () => figure.later();
  beat.on("change:value", later);
  figure.draw();
  // also called once at the start, when the figure has just been drawn in this size
  const seen = new ResizeObserver(() => figure.resize());
  seen.observe(frame.box);
  const dressed = new MutationObserver(() => told.dressed() && later());
  dressed.observe(document.body, { attributes: true });
  return () => {
    seen.disconnect();
    dressed.disconnect();
    beat.off("change:value", later);
    figure.remove();
  };
}

export default { initialize, render };
