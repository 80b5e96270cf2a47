"use strict";
// The page's arithmetic is that of exact_prep.weighing, in the same order; a test compares both.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

// Arithmetic

const sum = (values) => values.reduce((total, value) => total + value, 0);
const dot = (left, right) => left.reduce((total, value, place) => total + value * right[place], 0);
const share = (part, whole) => (whole ? part / whole : 0);
const bucketEdge = (bucket) => (bucket === 0 ? 0 : 2 ** (bucket + 2));
const findBucket = (context) => Math.max(context ? Math.floor(Math.log2(context)) - 2 : 0, 0);
const edgeAtOrAbove = (context) => (context <= 0 ? 0 : Math.max(2 ** Math.ceil(Math.log2(context)), 8));
const defaultTailFrom = (seqLen, window) => edgeAtOrAbove(Math.floor(Math.min(seqLen, window || seqLen) / 4));

/** Rounds to float16, half to even. */
function float16(value) {
  if (!Number.isFinite(value) || value === 0) return value;
  const size = Math.abs(value);
  const step = 2 ** (Math.max(Math.floor(Math.log2(size)), -14) - 10);
  const steps = size / step;
  const low = Math.floor(steps);
  const up = steps - low > 0.5 || (steps - low === 0.5 && low % 2 === 1);
  const rounded = (low + (up ? 1 : 0)) * step;
  return Math.sign(value) * (rounded >= 65520 ? Infinity : rounded);
}

/** Supervised targets per bucket, under sliding-window attention. */
function countTargets(exposure, options) {
  let counts = exposure.counts.slice();
  const last = options.window === null ? Infinity : findBucket(options.window);
  if (counts.length > last) counts = [...counts.slice(0, last), sum(counts.slice(last))];
  if (options.supervise_first && exposure.firsts) {
    if (!counts.length) counts = [0];
    counts[0] += exposure.firsts;
  }
  return counts;
}

/** The exposure that weights are made from: of one dataset, or of a mixture at its rates. */
function mixParts(parts) {
  if (parts.length === 1) return parts[0];
  const whole = sum(parts.map((part) => part.tokens));
  const rates = sum(parts.map((part) => part.rate));
  const factors = parts.map((part) => (part.tokens ? (whole * (part.rate / rates)) / part.tokens : 0));
  const size = Math.max(...parts.map((part) => part.counts.length));
  return {
    counts: Array.from({ length: size }, (_, b) => sum(parts.map((part, i) => factors[i] * (part.counts[b] || 0)))),
    firsts: sum(parts.map((part, i) => factors[i] * part.firsts)),
  };
}

/** One weight per bucket: w = 1 + alpha * r / sum(q * r) in the tail, r = (q + eps) ** -gamma. */
function weightTable(exposure, options) {
  const counts = countTargets(exposure, options);
  const inTail = counts.map((count, b) => bucketEdge(b) >= options.tail_from && count > 0);
  const places = counts.map((_, b) => b).filter((b) => inTail[b]);
  let weights = counts.map(() => 1);
  let extra = 0;
  let q = [];
  if (places.length) {
    const whole = sum(places.map((b) => counts[b]));
    q = places.map((b) => counts[b] / whole);
    const logs = q.map((own) => Math.log(own + options.eps));
    const least = Math.min(...logs);
    const rarity = logs.map((own) => Math.exp(-options.gamma * (own - least)));
    const mean = dot(q, rarity);
    const limit = options.max_weight === null ? DATA.maxWeight : options.max_weight;
    places.forEach((b, i) => (weights[b] = Math.min(1 + (options.alpha * rarity[i]) / mean, limit)));
    extra = dot(q, places.map((b) => weights[b] - 1));
  }
  let scale = 1;
  if (options.normalize === "mean" && sum(counts)) {
    scale = dot(counts, weights) / sum(counts);
    weights = weights.map((weight) => weight / scale);
  }
  const base = float16(1 / scale);
  const stored = places.length && base ? dot(q, places.map((b) => float16(weights[b]))) / base - 1 : 0;
  return { counts, weights, inTail, extra, extraFloat16: stored, scale };
}

/** What a table does to an exposure: targets, weights and shares per bucket, and those of the tail. */
function applyTable(exposure, table, options) {
  const counts = countTargets(exposure, options);
  const weights = counts.map((_, b) => (b < table.weights.length ? table.weights[b] : 1 / table.scale));
  const tail = counts.map((count, b) => bucketEdge(b) >= options.tail_from && count > 0);
  const supervision = counts.map((count, b) => count * weights[b]);
  const before = counts.map((count) => share(count, sum(counts)));
  const after = supervision.map((own) => share(own, sum(supervision)));
  const ofTail = (values) => sum(values.filter((_, b) => tail[b]));
  return {
    counts, weights, tail, before, after,
    targets: sum(counts),
    supervision: sum(supervision),
    tailBefore: share(ofTail(counts), sum(counts)),
    tailAfter: share(ofTail(supervision), sum(supervision)),
  };
}

window.exactPrep = Object.freeze({ float16, countTargets, mixParts, weightTable, applyTable, defaultTailFrom });

// Words

const count = (number) => number.toLocaleString("en-US");
const percent = (value) => `${(100 * value).toFixed(2)} %`;
const points = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(100 * value).toFixed(2)}`;
const number = (value) => String(Number(value.toPrecision(6)));
const short = (value) => (value && value % 1048576 === 0 ? `${value / 1048576}M` : value && value % 1024 === 0 ? `${value / 1024}K` : String(value));
const quote = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

// Elements. Text of the data enters as text nodes alone.

function make(space, tag, attributes, children) {
  const element = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const el = (tag, attributes, ...children) => make(null, tag, attributes, children);
const draw = (tag, attributes, ...children) => make(SVG, tag, attributes, children);

/** A table; a cell is a text, or [text, value] where the value is kept for whoever reads the page. */
function fillTable(id, head, rows, classes = []) {
  const cells = (row, first) =>
    row.map((cell, place) => {
      const [text, value] = Array.isArray(cell) ? cell : [cell, null];
      const made = place === 0 && first ? el("th", { scope: "row" }, text) : el("td", {}, text);
      if (value !== null) made.dataset.value = String(value);
      return made;
    });
  const header = el("tr", {}, ...head.map((text) => el("th", { scope: "col" }, text)));
  const body = rows.map((row, place) => el("tr", classes[place] ? { class: classes[place] } : {}, ...cells(row, true)));
  byId(id).replaceChildren(el("table", {}, el("thead", {}, header), el("tbody", {}, ...body)));
}

const difference = (value, other) => (value === other ? percent(value) : `${percent(value)} (${points(value - other)})`);

// State: which dataset, compared with which, and the options of the sliders.

const state = { dataset: 0, reference: DATA.reference, options: null };
const current = () => DATA.datasets[state.dataset];

function presentOptions(one) {
  const weights = one.facts.weights;
  const plain = { ...DATA.defaults, max_weight: null, supervise_first: false, normalize: "none", window: null, keep_mixture: false };
  if (!weights) return { ...plain, tail_from: defaultTailFrom(one.facts.seq_len, null) };
  return { ...plain, ...weights.options, tail_from: weights.tail_start };
}

const tailEdges = (one) => {
  const edges = [0];
  for (let edge = 8; edge < one.facts.seq_len; edge *= 2) edges.push(edge);
  if (!edges.includes(state.options.tail_from)) edges.push(state.options.tail_from);
  return edges.sort((left, right) => left - right);
};
const windows = (one) => {
  const own = presentOptions(one).window;
  const found = new Set(own === null ? [] : [own]);
  for (let window = 16; window < one.facts.seq_len; window *= 2) found.add(window);
  return [...[...found].sort((left, right) => left - right), null];
};

function compute(one, options) {
  const table = weightTable(mixParts(one.parts), options);
  return { table, own: applyTable(one.exposure, table, options) };
}

// Charts: drawn at the width that they have, so that text keeps its size.

function chart(id, height, label, paint) {
  const home = byId(id);
  const width = Math.max(Math.floor(home.clientWidth), 240);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  paint(svg, width, height);
  home.replaceChildren(svg);
}

function ticks(top, most) {
  const rough = top / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((own) => own >= rough);
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, place) => place * step);
}

function drawHistogram() {
  const one = current();
  const { own } = compute(one, state.options);
  const label = `Share of supervision by effective context. The tail, ${count(state.options.tail_from)} tokens or more, has ${percent(own.tailBefore)} before weighting and ${percent(own.tailAfter)} after.`;
  chart("histogram", 330, label, (svg, width, height) => {
    const left = 44, right = 46, top = 40, bottom = 46;
    const inner = width - left - right, deep = height - top - bottom;
    const size = own.counts.length, step = inner / Math.max(size, 1);
    const highest = Math.max(...own.before, ...own.after, 0.01) * 1.05;
    const heaviest = Math.max(...own.weights, 1) * 1.25;
    const x = (b) => left + b * step;
    const y = (value) => top + deep * (1 - value / highest);
    const w = (value) => top + deep * (1 - value / heaviest);
    const pattern = draw("pattern", { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      draw("rect", { width: 5, height: 5, class: "after-back" }), draw("line", { x1: 0, y1: 0, x2: 0, y2: 5, class: "hatch" }));
    svg.append(draw("defs", {}, pattern));
    const first = own.tail.findIndex(Boolean);
    if (first >= 0) svg.append(draw("rect", { x: x(first), y: top, width: x(size) - x(first), height: deep, class: "tail-shade" }));
    for (const tick of ticks(highest, 5)) {
      svg.append(draw("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "axis" }));
      svg.append(draw("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, `${Math.round(1000 * tick) / 10}%`));
    }
    own.counts.forEach((_, b) => {
      const bar = Math.max(step * 0.4, 1);
      svg.append(draw("rect", { x: x(b) + step / 2 - bar, y: y(own.before[b]), width: bar, height: top + deep - y(own.before[b]), class: "before" }));
      svg.append(draw("rect", { x: x(b) + step / 2, y: y(own.after[b]), width: bar, height: top + deep - y(own.after[b]), fill: "url(#hatch)" }));
    });
    const every = Math.max(Math.ceil(34 / step), 1);
    for (let b = 0; b < size; b += every)
      svg.append(draw("text", { x: x(b) + 2, y: top + deep + 18, "text-anchor": "start" }, short(bucketEdge(b))));
    const path = own.weights.map((weight, b) => `${b ? "L" : "M"}${x(b)} ${w(weight)}H${x(b + 1)}`).join("");
    svg.append(draw("path", { d: path || "M0 0", class: "weight-line" }));
    for (const tick of ticks(heaviest, 3))
      svg.append(draw("text", { x: width - right + 8, y: w(tick) + 4, class: "weight-text" }, number(tick)));
    svg.append(draw("text", { x: left + inner / 2, y: height - 6, "text-anchor": "middle" }, "effective context of the target, tokens"));
    let at = left;
    for (const [kind, text] of [["before", "before"], ["after", "after"], ["weight", "weight"], ["tail", "tail"]]) {
      if (kind === "weight") svg.append(draw("line", { x1: at, x2: at + 22, y1: 14, y2: 14, class: "weight-line" }));
      else svg.append(draw("rect", { x: at, y: 8, width: 14, height: 12, ...(kind === "after" ? { fill: "url(#hatch)" } : { class: kind === "tail" ? "tail-shade" : kind }) }));
      const wide = kind === "weight" ? 28 : 20;
      svg.append(draw("text", { x: at + wide, y: 18, class: "strong" }, text));
      at += wide + 12 + 7.2 * text.length;
    }
  });
}

/** Bars of shares over powers of two; `series` are [class, values]. */
function drawBars(id, label, names, series) {
  chart(id, 170, label, (svg, width, height) => {
    const left = 36, top = 8, bottom = 22, deep = height - top - bottom;
    const step = (width - left) / Math.max(names.length, 1);
    const highest = Math.max(...series.flatMap(([, values]) => values), 0.01) * 1.05;
    const y = (value) => top + deep * (1 - value / highest);
    for (const tick of ticks(highest, 3)) {
      svg.append(draw("line", { x1: left, x2: width, y1: y(tick), y2: y(tick), class: "axis" }));
      svg.append(draw("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, `${Math.round(1000 * tick) / 10}%`));
    }
    const bar = (step * 0.8) / series.length;
    series.forEach(([kind, values], s) =>
      values.forEach((value, place) =>
        svg.append(draw("rect", { x: left + place * step + step * 0.1 + s * bar, y: y(value), width: Math.max(bar - 0.5, 0.5), height: top + deep - y(value), class: kind }))));
    const every = Math.max(Math.ceil(32 / step), 1);
    names.forEach((name, place) => {
      if (place % every === 0) svg.append(draw("text", { x: left + place * step + 2, y: height - 5 }, name));
    });
  });
}

const powers = (size) => Array.from({ length: size }, (_, place) => short(2 ** place));
const shares = (values) => values.map((value) => share(value, sum(values)));

function drawLengths() {
  const one = current();
  const names = powers(one.length_documents.length);
  drawBars("lengths", "Documents and their tokens by document length", names, [["before", shares(one.length_documents)], ["after-back", shares(one.length_tokens)]]);
  const cuts = one.cut_places;
  drawBars("cuts", cuts.length ? "Where cuts fall in documents of the sampled rows" : "No document of the sampled rows is cut", powers(cuts.length), [["before", shares(cuts)]]);
  const perRow = [];
  for (const [, bars] of one.strip) {
    const place = bars.length ? Math.floor(Math.log2(bars.length)) : 0;
    while (perRow.length <= place) perRow.push(0);
    perRow[place] += 1;
  }
  drawBars("segments", "Segments per row of the sampled rows", powers(perRow.length), [["before", shares(perRow)]]);
  const documents = sum(one.length_documents);
  byId("lengths-note").textContent =
    `Left: share of the ${count(documents)} documents (blue) and of their tokens (orange), by powers of two. Middle and right: ${count(one.strip.length)} rows spread evenly over the dataset; ${count(sum(cuts))} of their segments continue a document.`;
}

function drawStrip() {
  const one = current();
  const line = 7, height = one.strip.length * line + 4;
  const plain = one.facts.sources.length < 2;
  chart("strip", height, `${one.strip.length} rows as bars of segments`, (svg, width) => {
    const paths = {};
    one.strip.forEach(([, bars], row) => {
      let start = 0;
      bars.forEach((bar, place) => {
        const from = (start / one.facts.seq_len) * width, to = ((start + bar.tokens) / one.facts.seq_len) * width;
        const kind = `s${plain ? [0, 4][place % 2] : bar.source % 6}`;
        const wide = Math.max(to - from - 0.6, 0.4).toFixed(2);
        paths[kind] = `${paths[kind] || ""}M${from.toFixed(2)} ${row * line}h${wide}v5h-${wide}z`;
        if (bar.cut) paths["cut-mark"] = `${paths["cut-mark"] || ""}M${from.toFixed(2)} ${row * line}h1.5v5h-1.5z`;
        start += bar.tokens;
      });
    });
    const marks = paths["cut-mark"];
    delete paths["cut-mark"];
    for (const [kind, d] of Object.entries(paths)) svg.append(draw("path", { d, class: kind }));
    if (marks) svg.append(draw("path", { d: marks, class: "cut-mark" }));
  });
  const note = byId("strip-note");
  note.replaceChildren(`${count(one.strip.length)} rows spread evenly over the dataset. A bar is a segment, a dark left edge a document that began in an earlier row, what is empty is padding. `);
  if (!plain)
    one.facts.sources.slice(0, 6).forEach((source, place) => note.append(el("span", { class: "key s" + place }), `${source.label}  `));
}

// Sections

function writeHeader() {
  const one = current(), facts = one.facts;
  const { own } = compute(one, presentOptions(one));
  const strong = (text) => el("strong", {}, text);
  const start = presentOptions(one).tail_from;
  const parts = facts.weights
    ? ["Targets with ", strong(`${count(start)} tokens`), " or more of visible context get ", strong(percent(facts.weights.tail_share)), " of supervision before weighting and ", strong(percent(facts.weights.weighted_tail_share)), " after."]
    : ["Targets with ", strong(`${count(start)} tokens`), " or more of visible context get ", strong(percent(own.tailBefore)), " of supervision; weighing would give them ", strong(percent(own.tailAfter)), "."];
  byId("sentence").replaceChildren(...parts);
  const said = [];
  const documents = facts.documents;
  if (facts.weights && facts.weights.state !== "complete") said.push("Half-weighed: some shards hold these weights, others do not. Run exact-prep weigh again.");
  if (!facts.weights) said.push("Not weighed: every supervised target has weight 1.");
  if (!own.tail.some(Boolean)) said.push(`The tail is empty: no target has a context of ${count(start)} or more.`);
  if (documents.rejected) said.push(`${count(documents.rejected)} of ${count(documents.records)} records (${percent(share(documents.rejected, documents.records))}) were rejected and are not in the dataset.`);
  if (facts.padding_share >= 0.01) said.push(`${percent(facts.padding_share)} of all positions are padding.`);
  if (facts.documents_cut) said.push(`${count(facts.documents_cut)} of ${count(documents.packed)} documents (${percent(share(facts.documents_cut, documents.packed))}) are cut: what follows a cut does not see what came before.`);
  if (one.interior_eos) said.push(`${count(one.interior_eos)} EOS tokens stand inside segments of the sampled rows: rows of ids may hold several documents, whose contexts are then too long.`);
  if (facts.weights && Math.abs(facts.weights.extra_float16 - facts.weights.extra) > 0.01 * facts.weights.extra) said.push(`Stored as float16, the extra supervision is ${number(facts.weights.extra_float16)}, not ${number(facts.weights.extra)}.`);
  if (facts.weights && facts.weights.options.alpha - facts.weights.extra > 1e-9) said.push(`Clipping leaves ${number(facts.weights.extra)} of alpha ${number(facts.weights.options.alpha)}.`);
  byId("warnings").replaceChildren(...said.map((text) => el("li", {}, text)));
  byId("warnings").hidden = !said.length;
}

function makeCommand(one, options) {
  const words = ["exact-prep", "weigh"];
  for (const part of one.parts) {
    const shown = DATA.datasets.find((other) => other.facts.tree_hash === part.id);
    const directory = part.directory || (shown && shown.facts.directory);
    words.push(directory ? quote(directory) : `DATASET-${part.id.slice(0, 8)}`);
  }
  words.push("--alpha", number(options.alpha), "--gamma", number(options.gamma), "--tail-from", String(options.tail_from));
  if (options.window !== null) words.push("--window", String(options.window));
  if (options.eps !== DATA.defaults.eps) words.push("--eps", String(options.eps));
  if (options.max_weight !== null) words.push("--max-weight", String(options.max_weight));
  if (options.supervise_first) words.push("--supervise-first");
  if (options.normalize !== "none") words.push("--normalize", options.normalize);
  if (one.parts.length > 1) words.push("--rates", one.parts.map((part) => String(part.rate)).join(","));
  if (options.keep_mixture) words.push("--keep-mixture");
  return words.join(" ");
}

function writeWhatIf() {
  const one = current(), options = state.options;
  const { table, own } = compute(one, options);
  const edges = tailEdges(one), choices = windows(one);
  const set = (id, max, value, text) => {
    const slider = byId(id);
    slider.max = String(max);
    slider.value = String(value);
    slider.setAttribute("aria-valuetext", text);
    byId(`${id}-value`).textContent = text;
  };
  set("alpha", Math.max(2, Math.ceil(presentOptions(one).alpha)), options.alpha, number(options.alpha));
  set("gamma", Math.max(2, Math.ceil(presentOptions(one).gamma)), options.gamma, number(options.gamma));
  set("tail", edges.length - 1, edges.indexOf(options.tail_from), count(options.tail_from));
  set("window", choices.length - 1, choices.indexOf(options.window), options.window === null ? "none" : count(options.window));
  const largest = Math.max(...own.weights.filter((_, b) => own.counts[b] > 0), 0);
  const figures = [
    ["tail before", percent(own.tailBefore), own.tailBefore],
    ["tail after", percent(own.tailAfter), own.tailAfter],
    ["extra supervision", number(table.extra), table.extra],
    ["as float16", number(table.extraFloat16), table.extraFloat16],
    ["largest weight", largest.toFixed(4), largest],
  ];
  byId("figures").replaceChildren(...figures.map(([name, text, value]) => {
    const dd = el("dd", {}, text);
    dd.dataset.value = String(value);
    return el("div", {}, el("dt", {}, name), dd);
  }));
  byId("command").textContent = makeCommand(one, options) + (table.inTail.some(Boolean) ? "" : " --allow-empty-tail");
  const rows = own.counts.map((targets, b) => [
    `${count(bucketEdge(b))}\u2013${count(Math.min(bucketEdge(b + 1), one.facts.seq_len) - 1)}${own.tail[b] ? " tail" : ""}`,
    [count(targets), targets], [percent(own.before[b]), own.before[b]], [own.weights[b].toFixed(4), own.weights[b]], [percent(own.after[b]), own.after[b]],
  ]);
  fillTable("buckets", ["context", "targets", "before", "weight", "after"], rows, own.tail.map((tail) => (tail ? "tail" : "")));
  writeSources(table);
}

const MOST_SOURCES = 40;

function writeSources(table) {
  const one = current(), sources = one.facts.sources;
  byId("s-sources").hidden = !sources.length;
  const seen = sources.map((_, place) => applyTable(one.source_exposures[place], table, state.options));
  const targets = sum(seen.map((own) => own.targets)), supervision = sum(seen.map((own) => own.supervision));
  const order = sources.map((_, place) => place).sort((left, right) => sources[right].tokens - sources[left].tokens);
  const rows = order.slice(0, MOST_SOURCES).map((place) => {
    const source = sources[place], own = seen[place];
    const before = share(own.targets, targets), after = share(own.supervision, supervision);
    return [source.label, [count(source.documents), source.documents], [count(source.tokens), source.tokens], [percent(own.tailBefore), own.tailBefore], [percent(before), before], [difference(after, before), after], [count(source.median_length), source.median_length], [count(source.length_95), source.length_95]];
  });
  if (order.length > MOST_SOURCES) rows.push([`and ${count(order.length - MOST_SOURCES)} more, see report --by-source`, ...Array(7).fill("")]);
  fillTable("sources", ["source", "documents", "tokens", "in the tail", "before", "after", "median length", "95 %"], rows);
}

function writeMixture() {
  const weights = current().facts.weights, mixture = weights && weights.mixture;
  byId("s-mixture").hidden = !mixture;
  if (!mixture) return;
  const rows = mixture.datasets.map((one) => [one.directory || `tree hash ${one.id.slice(0, 8)}\u2026`, [count(one.rows), one.rows], [percent(one.rate), one.rate], [percent(one.share), one.share], [difference(one.weighted_share, one.share), one.weighted_share]]);
  fillTable("mixture", ["dataset", "rows", "tokens read", "before", "after"], rows);
}

function writeSide() {
  const many = DATA.datasets.length > 1;
  byId("s-side").hidden = !many;
  if (!many) return;
  const measures = DATA.datasets.map(({ facts }) => [facts.padding_share, sum(facts.buckets.filter((bucket) => bucket.in_tail).map((bucket) => bucket.share)), facts.weights ? facts.weights.weighted_tail_share : null]);
  const rows = DATA.datasets.map(({ facts }, place) => [facts.directory, [count(facts.rows), facts.rows], ...measures[place].map((value, k) => {
    const other = measures[state.reference][k];
    if (value === null) return "";
    return [place === state.reference || other === null ? percent(value) : `${percent(value)} (${points(value - other)})`, value];
  })]);
  fillTable("side", ["dataset", "rows", "padding", "tail before", "tail after"], rows);
}

function writeTexts() {
  const one = current();
  byId("texts-note").textContent = one.texts_missing || "Some rows, spread evenly over the dataset. The edge tells segments apart, the shade grows with the weight, special tokens are boxed; hover for a weight.";
  byId("texts").replaceChildren(...one.texts.map((row, place) => {
    const largest = Math.max(...row.segments.flatMap((segment) => segment.pieces.map((piece) => piece.weight)), 0);
    const base = Math.min(...row.segments.flatMap((segment) => segment.pieces.map((piece) => piece.weight)).filter((weight) => weight > 0), largest);
    const level = (weight) => (weight === 0 ? 0 : weight <= base * 1.0001 ? 1 : 2 + Math.min(Math.floor((4 * (weight - base)) / (largest - base || 1)), 3));
    const segments = row.segments.map((segment, s) => el("div", { class: `segment s${s % 6}` }, el("p", { class: "origin" }, segment.title),
      el("div", { class: "body" }, ...segment.pieces.flatMap((piece) => {
        const span = el("span", { class: piece.special ? "special" : `p${level(piece.weight)}`, title: `weight ${number(piece.weight)}` }, piece.text);
        return piece.left_out ? [span, el("span", { class: "gap" }, ` \u2026 ${count(piece.left_out)} tokens \u2026 `)] : [span];
      }))));
    const rest = [row.segments_left_out && `${count(row.segments_left_out)} more segments`, row.padding && `${count(row.padding)} padding tokens`].filter(Boolean).join(", ");
    if (rest) segments.push(el("p", { class: "origin" }, rest));
    const details = el("details", {}, el("summary", {}, `row ${count(row.row)}: ${count(row.segments.length + row.segments_left_out)} segments`), el("div", { class: "text", tabindex: "0", role: "region", "aria-label": `Text of row ${row.row}` }, ...segments));
    details.open = place === 0;
    return details;
  }));
}

function writeProvenance() {
  byId("provenance").replaceChildren(...current().provenance.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  byId("bibtex").textContent = DATA.bibtex;
}

// The glossary

function explainTerms() {
  const tip = byId("tip");
  const hide = () => (tip.hidden = true);
  for (const term of document.querySelectorAll("[data-term]")) {
    const text = DATA.glossary[term.dataset.term];
    if (!text) {
      delete term.dataset.term;
      continue;
    }
    term.tabIndex = 0;
    const show = () => {
      tip.textContent = text;
      tip.hidden = false;
      const box = term.getBoundingClientRect();
      tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + scrollX}px`;
      tip.style.top = `${box.bottom + scrollY + 6}px`;
      term.setAttribute("aria-describedby", "tip");
    };
    term.addEventListener("mouseenter", show);
    term.addEventListener("focus", show);
    term.addEventListener("mouseleave", hide);
    term.addEventListener("blur", hide);
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
}

// Life

function update() {
  drawHistogram();
  writeWhatIf();
}

function drawAll() {
  drawHistogram();
  drawLengths();
  drawStrip();
}

function choose(place) {
  state.dataset = place;
  state.options = presentOptions(current());
  writeHeader();
  writeMixture();
  writeTexts();
  writeProvenance();
  drawAll();
  writeWhatIf();
}

function start() {
  const named = () => DATA.datasets.map((one, place) => el("option", { value: place }, one.facts.directory));
  byId("dataset").append(...named());
  byId("reference").append(...named());
  byId("chooser").hidden = DATA.datasets.length < 2;
  byId("reference").value = String(state.reference);
  byId("dataset").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("reference").addEventListener("change", (event) => {
    state.reference = Number(event.target.value);
    writeSide();
  });
  const listen = (id, change) => byId(id).addEventListener("input", (event) => {
    change(Number(event.target.value));
    update();
  });
  listen("alpha", (value) => (state.options.alpha = value));
  listen("gamma", (value) => (state.options.gamma = value));
  listen("tail", (value) => (state.options.tail_from = tailEdges(current())[value]));
  listen("window", (value) => (state.options.window = windows(current())[value]));
  byId("reset").addEventListener("click", () => {
    state.options = presentOptions(current());
    update();
  });
  choose(0);
  writeSide();
  explainTerms();
  let width = 0;
  new ResizeObserver(() => {
    if (byId("page").clientWidth !== width) {
      width = byId("page").clientWidth;
      drawAll();
    }
  }).observe(byId("page"));
}

start();
