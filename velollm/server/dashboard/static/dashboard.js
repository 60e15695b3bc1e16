// Asks for the figures every two seconds and writes them as text: nothing that a client or a model said is ever markup.
"use strict";

const EVERY = 2000;
const HISTORY = 90;
const $ = (id) => document.getElementById(id);
const history = { tokens: [], requests: [], running: [] };
let last = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = String(text);
  if (className) made.className = className;
  return made;
}

// ---- numbers as people read them ----

function count(value) {
  if (value >= 1e9) return (value / 1e9).toFixed(1) + " G";
  if (value >= 1e6) return (value / 1e6).toFixed(1) + " M";
  if (value >= 1e4) return (value / 1e3).toFixed(0) + " k";
  return String(value ?? "–");
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return (value * 1000).toFixed(value < 0.01 ? 1 : 0) + " ms";
  return value < 100 ? value.toFixed(value < 10 ? 2 : 1) + " s" : Math.round(value) + " s";
}

const quantiles = (latency) => (latency ? [latency.p50, latency.p90, latency.p99].map(seconds).join(" · ") : "–");
const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));
const total = (values) => Object.values(values).reduce((sum, value) => sum + value, 0);

function duration(value) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = Math.max(0, units.findIndex(([, size]) => value >= size));
  const [name, size] = units[at] ?? units[3];
  const next = units[at + 1];
  const rest = next ? Math.floor((value % size) / next[1]) : 0;
  return `${Math.floor(value / size)} ${name}` + (rest ? ` ${rest} ${next[0]}` : "");
}

// ---- pictures ----

function spark(id, values) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, at) => {
    const x = 120 - (values.length - 1 - at) * (120 / (HISTORY - 1));
    return `${x.toFixed(1)},${(30 - (value / most) * 27).toFixed(1)}`;
  });
  if (points.length < 2) return;
  const line = "M" + points.join("L");
  $(id).querySelector(".line").setAttribute("d", line);
  $(id).querySelector(".area").setAttribute("d", `${line}V32H${points[0].split(",")[0]}Z`);
}

function remember(name, value) {
  history[name].push(value);
  if (history[name].length > HISTORY) history[name].shift();
  spark(`${name}-spark`, history[name]);
}

// ---- what is shown ----

function totals(status) {
  const sums = { tokens: 0, answered: 0, failed: 0, queries: 0, hits: 0 };
  for (const model of Object.values(status.models)) {
    sums.tokens += model.generation_tokens;
    sums.answered += total(model.finished) - (model.finished.abort ?? 0);
    sums.failed += total(model.failed);
    sums.queries += model.prefix_cache.queries;
    sums.hits += model.prefix_cache.hits;
  }
  return { ...sums, at: performance.now() };
}

function showNow(status) {
  const sums = totals(status);
  if (last) {
    const passed = (sums.at - last.at) / 1000;
    remember("tokens", Math.max(0, sums.tokens - last.tokens) / passed);
    remember("requests", Math.max(0, sums.answered - last.answered) / passed);
  }
  remember("running", status.running);
  last = sums;
  $("tokens-rate").textContent = rate(status.rates.generation_tokens_per_second);
  $("requests-rate").textContent = rate(status.rates.requests_per_second);
  $("running").textContent = status.running;
  $("answered").textContent = count(sums.answered);
  $("failed").textContent = sums.failed ? `${count(sums.failed)} failed` : "none failed";
  $("prefix").textContent = sums.queries ? Math.round((sums.hits / sums.queries) * 100) + " %" : "–";
  $("prefix-note").textContent = sums.queries ? `${count(sums.hits)} of ${count(sums.queries)}` : "no engine has told yet";
  $("about").textContent = `${status.version}, up for ${duration(status.uptime)}`;
}

function showBackends(backends) {
  const up = backends.filter((backend) => backend.up).length;
  if (!up) setState("down", "no engine answers");
  else if (up < backends.length) setState("partly", `${up} of ${backends.length} engines answer`);
  else setState("up", "ready");
  $("backends").replaceChildren(...backends.map((backend) => {
    const card = element("div", null, "engine");
    const name = element("h3");
    name.append(element("span", null, `dot ${backend.up ? "up" : "down"}`), element("span", backend.name));
    if (backend.kind) name.append(element("span", backend.kind, "kind"));
    card.append(name);
    if (backend.error) card.append(element("p", backend.error, "error"));
    const shown = backend.models.slice(0, 8).join(", ");
    const more = backend.models.length > 8 ? ` and ${backend.models.length - 8} more` : "";
    card.append(element("p", shown ? shown + more : "no models yet"));
    return card;
  }));
}

function rows(table, made, nothing) {
  const body = table.tBodies[0];
  if (made.length) return body.replaceChildren(...made);
  const cell = element("td", nothing, "none");
  cell.colSpan = table.tHead.rows[0].cells.length;
  const row = element("tr");
  row.append(cell);
  body.replaceChildren(row);
}

function row(...cells) {
  const made = element("tr");
  made.append(...cells.map(([text, className]) => {
    const cell = element("td", text, className);
    if (className && className.includes("text")) cell.title = text ?? "";
    return cell;
  }));
  return made;
}

function showModels(models) {
  const made = Object.entries(models).map(([name, model]) => {
    const failed = total(model.failed);
    return row(
      [name, "text"], [count(total(model.finished) - (model.finished.abort ?? 0))],
      [failed ? count(failed) : "–", failed ? "bad" : "soft"], [count(model.prompt_tokens)],
      [count(model.generation_tokens)], [quantiles(model.ttft)], [quantiles(model.itl)], [quantiles(model.e2e)],
    );
  });
  rows($("models"), made, "nothing was asked yet");
}

function showLayer(id, counts) {
  $(id).hidden = !counts;
  if (!counts) return;
  const lines = counts.flatMap(({ count: value, ...labels }) => [
    element("dt", Object.values(labels).filter(Boolean).join(" · ")), element("dd", count(value)),
  ]);
  $(id).querySelector("dl").replaceChildren(...lines);
}

function outcome(request) {
  if (request.outcome === "ok" || (!request.outcome && request.status < 400)) return [request.finish ?? "ok", "text good"];
  if (request.outcome === "cancelled") return ["client left", "text warn"];
  return [request.outcome ?? "refused", "text bad"];
}

function showRequests(requests) {
  const made = requests.slice(0, 100).map((request) => row(
    [new Date(request.at * 1000).toLocaleTimeString([], { hour12: false }), "text"],
    [request.status || "–", request.status < 400 ? "text" : "text bad"],
    [`${request.method} ${request.path}`, "text"], [request.model ?? "", "text"], [request.backend ?? "", "text"],
    outcome(request), [count(request.prompt_tokens)], [count(request.completion_tokens)],
    [request.ttft_ms === undefined ? "–" : seconds(request.ttft_ms / 1000)], [seconds(request.duration_ms / 1000)],
  ));
  rows($("requests"), made, "none yet: send one, and it shows up here");
}

function setState(state, text) {
  $("state").firstElementChild.className = `dot ${state}`;
  $("state-text").textContent = text;
}

async function fetchJson(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${path} answered ${response.status}`);
  return response.json();
}

async function refresh() {
  try {
    const [status, recent] = await Promise.all([fetchJson("api/status"), fetchJson("api/requests")]);
    showNow(status);
    showBackends(status.backends);
    showModels(status.models);
    showLayer("cache", status.cache);
    showLayer("tool_calls", status.tool_calls);
    $("layers").hidden = !status.cache && !status.tool_calls;
    showRequests(recent.requests);
  } catch (error) {
    setState("down", `no answer from VeloLLM: ${error.message}`);
  }
  setTimeout(refresh, document.hidden ? 5 * EVERY : EVERY);
}

refresh();
