// What the service does now, from its metrics, while somebody looks.

import { $, bytes, rate, whole } from "./dom.js";
import { sparkline } from "./chart.js";
import { call } from "./service.js";

const EVERY = 2000;
const AFTER_FAILURE = 6000;
const LENGTH = 60;
const OPERATIONS = /route="\/(quantize|dequantize|levels|aggregate|plan)"/;

/** The samples of Prometheus' text format, as [name, labels, value]. */
export function samplesOf(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const parts = /^([a-z_]+)(\{.*\})? (\S+)$/.exec(line);
    if (parts) found.push([parts[1], parts[2] ?? "", Number(parts[3])]);
  }
  return found;
}

/** The few figures that are shown. */
export function figuresOf(text) {
  const figures = { values: 0, requests: 0, waiting: 0 };
  for (const [name, labels, value] of samplesOf(text)) {
    if (name === "quiver_elements_total") figures.values += value;
    else if (name === "quiver_requests_total" && OPERATIONS.test(labels)) figures.requests += value;
    else if (name === "quiver_queue_depth") figures.waiting = value;
    else if (name === "quiver_jobs_running") figures.running = value;
    else if (name === "quiver_threads") figures.threads = value;
    else if (name === "quiver_inflight_bytes") figures.lent = value;
    else if (name === "quiver_budget_bytes") figures.budget = value;
    else if (name === "quiver_ready") figures.ready = value === 1;
    else if (name === "process_start_time_seconds") figures.started = value;
  }
  return figures;
}

/** Poll gently: only while the page is seen, less often after a failure. `key` is asked for each time. */
export function watch(key) {
  let timer = 0;
  let before = null;
  const history = [];

  async function look() {
    timer = 0;
    let wait = EVERY;
    try {
      const answer = await call("metrics", { key: key(), signal: AbortSignal.timeout(5000) });
      const figures = { ...figuresOf(await answer.text()), at: performance.now() };
      show(figures);
      before = figures;
    } catch {
      before = null;
      say("down", "Not reachable");
      wait = AFTER_FAILURE;
    }
    plan(wait);
  }

  function plan(wait) {
    if (!timer && document.visibilityState === "visible") timer = setTimeout(look, wait);
  }

  function show(figures) {
    const full = figures.waiting > 0;
    say(figures.ready ? (full ? "busy" : "ready") : "busy", figures.ready ? (full ? "Busy" : "Ready") : "Starting");
    $("live-queue").textContent = whole(figures.waiting);
    $("live-running").textContent = `${figures.running} of ${figures.threads} threads`;
    $("live-memory").textContent = `${bytes(figures.lent)} of ${bytes(figures.budget)}`;
    // Counters of another process, behind a balancer or after a restart, say nothing about this one's.
    if (before === null || before.started !== figures.started) return;
    const seconds = (figures.at - before.at) / 1000;
    const values = Math.max(0, figures.values - before.values) / seconds;
    $("live-values").textContent = rate(values);
    $("live-requests").textContent = rate(Math.max(0, figures.requests - before.requests) / seconds);
    history.push(values);
    if (history.length > LENGTH) history.shift();
    sparkline($("spark"), history, LENGTH);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    timer = 0;
    before = null;
    plan(0);
  });
  plan(0);
}

function say(state, text) {
  $("state").dataset.state = state;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}
