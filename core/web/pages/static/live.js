// @ts-check
/**
 * Keeps a page live: parts that name topics are fetched again when something of these topics has changed, and a list
 * says how many new rows there are.
 *
 * All tabs of a browser share one stream of events, since a browser opens only six connections to a server: the tab that
 * has the lock listens, and tells the others. Where the browser has no locks, as over plain HTTP, pages ask every ten
 * seconds.
 */

/** @typedef {{topics: string[], runs: {id: number, job: string, state: string}[], more: boolean}} Change */
/** @typedef {{kind: "hello" | "away" | "back" | "lost"} | {kind: "change", change: Change}} Message */

const CHANNEL = "rota-live";
const ASK_EVERY_MS = 10_000;
const TRY_AGAIN_MS = 5_000;
/** The shortest time between two fetches. A page that takes long is fetched less often. */
const APART_MS = 1_000;
const APART_FACTOR = 5;

const place = document.getElementById("live");
const said = place?.querySelector("span");
const hold = place?.querySelector("button");
let isHeld = false;
let isAway = false;
let asOf = "";

/** @returns {HTMLElement[]} */
const parts = () => [...document.querySelectorAll("[data-live][id]")].filter((each) => each instanceof HTMLElement);

/** Says how live the page is. */
function say() {
  if (!place || !said) return;
  place.hidden = false;
  place.classList.toggle("still", isHeld || isAway);
  const since = asOf && ` ${asOf}`;
  said.textContent = isAway ? `PostgreSQL is away; as of${since}` : isHeld ? `held, as of${since}` : `live${since && `, as of${since}`}`;
}

/**
 * Whether a change concerns a part.
 * @param {HTMLElement} part
 * @param {Change | null} change
 */
function concerns(part, change) {
  if (change === null) return true;
  const { live = "", run, job } = part.dataset;
  const others = change.topics.filter((topic) => topic !== "runs");
  if (live.split(" ").some((topic) => others.includes(topic))) return true;
  if (!live.split(" ").includes("runs") || !change.topics.includes("runs")) return false;
  if (change.more || (!run && !job)) return true;
  return change.runs.some((each) => (run ? String(each.id) === run : each.job === job));
}

/**
 * Whether somebody is at work in a part, so that it must stay as it is.
 * @param {HTMLElement} part
 */
function isBusy(part) {
  const { activeElement } = document;
  const selection = document.getSelection();
  const isSelected = selection !== null && !selection.isCollapsed && part.contains(selection.anchorNode);
  const isFocused = activeElement instanceof HTMLElement && activeElement.matches("input, select, textarea");
  return isSelected || (isFocused && part.contains(activeElement)) || part.querySelector("input:checked") !== null;
}

/**
 * Puts the parts of a newer page in place of those that differ.
 * @param {Document} newer
 */
function replace(newer) {
  document.title = newer.title;
  for (const part of parts()) {
    const other = newer.getElementById(part.id);
    if (other === null || isBusy(part)) continue;
    const opened = new Set([...part.querySelectorAll("details[open]")].map((each) => each.id));
    if (part.innerHTML === other.innerHTML) continue;
    const focused = document.activeElement instanceof HTMLAnchorElement && part.contains(document.activeElement);
    const address = focused ? document.activeElement?.getAttribute("href") : null;
    const fresh = document.importNode(other, true);
    for (const each of fresh.querySelectorAll("details")) if (each.id && opened.has(each.id)) each.open = true;
    part.replaceWith(fresh);
    if (address) /** @type {HTMLElement | null} */ (fresh.querySelector(`a[href="${CSS.escape(address)}"]`))?.focus();
  }
}

/** Says how many rows of a list are new, rather than moving its rows. */
async function count() {
  for (const list of document.querySelectorAll("[data-new]")) {
    if (!(list instanceof HTMLElement)) continue;
    const answer = await fetch(String(list.dataset.new), { headers: { Accept: "application/json" } });
    if (!answer.ok) continue;
    const { items } = /** @type {{items: {id: number}[]}} */ (await answer.json());
    const fresh = items.filter((each) => each.id > Number(list.dataset.newest)).length;
    const link = list.querySelector("a.fresh");
    if (fresh && link instanceof HTMLAnchorElement) {
      link.hidden = false;
      link.textContent = `${fresh}${fresh === items.length ? " or more" : ""} new, show`;
    }
  }
}

let isFetching = false;
let isWanted = false;
let isDirty = false;
let notBefore = 0;

/** Fetches the page again, at once or when it may. */
async function refresh() {
  if (document.hidden || isHeld) {
    isDirty = true;
    return;
  }
  isWanted = true;
  if (isFetching) return;
  isFetching = true;
  while (isWanted) {
    const wait = notBefore - performance.now();
    if (wait > 0) await new Promise((done) => setTimeout(done, wait));
    isWanted = isDirty = false;
    const began = performance.now();
    await fetched().catch(() => undefined); // the next change tries again
    notBefore = began + Math.max(APART_MS, APART_FACTOR * (performance.now() - began));
  }
  isFetching = false;
}

async function fetched() {
  if (parts().length) {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected && new URL(answer.url).pathname !== location.pathname) return location.reload();
    if (answer.ok) {
      replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      asOf = clock(answer.headers.get("Date"));
    }
  }
  await count();
  say();
}

/**
 * The time of the server: the browser's own clock may be wrong.
 * @param {string | null} date
 */
const clock = (date) => (date ? `${new Date(date).toISOString().slice(11, 19)} UTC` : "");

/** @param {Message} message */
function hear(message) {
  if (message.kind === "away" || message.kind === "lost") isAway = message.kind === "away";
  if (message.kind === "back" || message.kind === "hello") isAway = false;
  say();
  if (message.kind === "away" || message.kind === "lost") return;
  const change = message.kind === "change" ? message.change : null;
  const isOfList = document.querySelector("[data-new]") !== null && (!change || change.topics.includes("runs"));
  if (isOfList || parts().some((part) => concerns(part, change))) void refresh();
}

/**
 * Listens for all tabs of this browser, until the tab is hidden.
 * @param {string} address
 * @param {BroadcastChannel} channel
 * @param {AbortSignal} signal
 */
async function listen(address, channel, signal) {
  /** @param {Message} message */
  const tell = (message) => {
    channel.postMessage(message);
    hear(message);
  };
  const listening = () =>
    new Promise((done) => {
      const source = new EventSource(address);
      const end = () => (source.close(), done(undefined));
      for (const kind of /** @type {const} */ (["hello", "away", "back"])) source.addEventListener(kind, () => tell({ kind }));
      source.addEventListener("change", (event) => tell({ kind: "change", change: JSON.parse(event.data) }));
      source.addEventListener("error", () => {
        if (source.readyState !== EventSource.CLOSED) return;
        tell({ kind: "lost" });
        setTimeout(end, TRY_AGAIN_MS);
      });
      signal.addEventListener("abort", end);
    });
  while (!signal.aborted) await navigator.locks.request(`${CHANNEL} ${address}`, { signal }, listening).catch(() => undefined);
}

/** @param {string} address */
function start(address) {
  const channel = new BroadcastChannel(`${CHANNEL} ${address}`);
  channel.addEventListener("message", (event) => hear(event.data));
  let control = new AbortController();
  document.addEventListener("visibilitychange", () => {
    control.abort();
    if (document.hidden) return;
    control = new AbortController();
    void listen(address, channel, control.signal);
    if (isDirty) void refresh();
  });
  if (!document.hidden) void listen(address, channel, control.signal);
}

hold?.addEventListener("click", () => {
  isHeld = !isHeld;
  hold.textContent = isHeld ? "go on" : "hold";
  say();
  if (!isHeld && isDirty) void refresh();
});

if (place && (parts().length || document.querySelector("[data-new]"))) {
  if ("locks" in navigator && "BroadcastChannel" in window && "EventSource" in window) start(String(place.dataset.events));
  else setInterval(refresh, ASK_EVERY_MS);
  say();
}
