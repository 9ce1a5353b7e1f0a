// The API, drawn from the OpenAPI document of this very service, with requests that are really sent.

import { $, bytes, element, short } from "./dom.js";
import { decodeMessagePack, encodeMessagePack } from "./quiver/msgpack.js";
import { packed, parsed, resolved, rowsOf, shown } from "./schema.js";
import { call, MESSAGE, send } from "./service.js";

const JSON_TYPE = "application/json";
const PROBLEM = "application/problem+json";
const METHODS = ["get", "post"];
// What is sent in the form that it has here. Raw bodies are a file's, and no text of a page.
const FORMS = [MESSAGE, JSON_TYPE];

const key = () => $("key").value.trim();

/** Text with `code` and **bold** in it, as elements. */
function prose(text) {
  return text.split(/\n\s*\n/).map((paragraph) => element("p", {}, ...paragraph.split(/(``[^`]+``|`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`")) return element("code", {}, part.replace(/^`+|`+$/g, ""));
    return part.startsWith("**") ? element("strong", {}, part.slice(2, -2)) : part;
  })));
}

function rowsTable(rows, caption) {
  const head = element("tr", {}, ...["key", "type", "meaning"].map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map(([name, type, meaning]) => element("tr", {}, element("td", {}, element("code", {}, name)), element("td", {}, type), element("td", {}, ...prose(meaning))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, element("table", { class: "keys" }, element("thead", {}, head), element("tbody", {}, ...body)));
}

/** A JSON value to be edited: lists of numbers and names on one line. */
function edited(value) {
  return JSON.stringify(value, null, 2).replace(/\[\s+([^[\]{}]*?)\s+\]/g, (_, items) => `[${items.replace(/,\s+/g, ", ")}]`);
}

/** Examples of a body, as {label, text, form, schema}. */
function examplesOf(body) {
  return FORMS.filter((form) => body.content[form]).flatMap((form) => {
    const { schema, examples = {} } = body.content[form];
    return Object.entries(examples).map(([name, { summary, value }]) => ({
      label: `${form === MESSAGE ? "MessagePack" : "JSON"}: ${summary ?? name}`, text: edited(value), form, schema,
    }));
  });
}

/** The name of an operation in the page's own links. */
const idOf = (path) => path.slice(1).replaceAll("/", "-");

function operation(path, method, described, document) {
  const id = idOf(path);
  const title = element("h2", { id: `${id}-title` }, element("b", {}, method.toUpperCase()), path);
  const section = element("section", { class: "card operation", id, "aria-labelledby": `${id}-title` }, title);
  section.append(element("div", { class: "prose" }, ...prose(described.description ?? described.summary ?? "")));
  const schema = described.requestBody && resolved(described.requestBody.content[MESSAGE]?.schema, document);
  for (const one of schema ? (schema.anyOf ?? [schema]) : []) {
    const rows = rowsOf(one, document);
    if (rows.length) section.append(element("details", {}, element("summary", {}, `Keys of the request (${rows.length}; * is required)`), rowsTable(rows, `Keys of the request of ${path}`)));
  }
  const answer = described.responses?.["200"]?.content;
  const rows = rowsOf((answer?.[MESSAGE] ?? answer?.[JSON_TYPE])?.schema, document);
  if (rows.length) section.append(element("details", {}, element("summary", {}, `Keys of the answer (${rows.length})`), rowsTable(rows, `Keys of the answer of ${path}`)));
  section.append(trial(path, method, described, document));
  return section;
}

/** What sends a request and shows what came back. */
function trial(path, method, described, document) {
  const id = idOf(path);
  const examples = described.requestBody ? examplesOf(described.requestBody) : [];
  const box = element("div", { class: "try" });
  const line = element("p", { class: "status-line", role: "status" });
  const out = element("div", { class: "try" });
  const button = element("button", { type: "button", class: "primary" }, "Send", element("span", { class: "visually-hidden" }, ` ${method.toUpperCase()} ${path}`));
  let text = null;
  let select = null;
  if (examples.length) {
    select = element("select", { id: `${id}-example` }, ...examples.map(({ label }, index) => element("option", { value: index }, label)));
    text = element("textarea", { id: `${id}-body`, rows: 10, spellcheck: "false" });
    text.value = examples[0].text;
    select.addEventListener("change", () => { text.value = examples[Number(select.value)].text; });
    box.append(
      element("div", { class: "row" }, element("label", { class: "field", for: `${id}-example` }, "Example", select)),
      element("label", { class: "field", for: `${id}-body` }, "Body, as JSON; bytes as base64", text),
    );
  }
  box.append(element("div", { class: "row" }, button), line, out);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const request = examples.length ? requestOf(text.value, examples[Number(select.value)], document) : {};
      const { status, nodes } = await exchanged(path, method, request);
      tell(line, status, /^2/.test(status));
      out.replaceChildren(...nodes);
    } catch (error) {
      tell(line, error.message, false);
      out.replaceChildren();
    } finally {
      button.disabled = false;
    }
  });
  return box;
}

function tell(line, text, good) {
  line.className = `status-line ${good ? "ok" : "no"}`;
  line.textContent = text;
}

/** Body and headers of what stands in an editor. */
function requestOf(text, { form, schema }, document) {
  let value;
  try {
    value = parsed(text);
  } catch (error) {
    throw new Error(`The body is no JSON: ${error.message}`);
  }
  const body = form === MESSAGE ? encodeMessagePack(packed(value, schema, document)) : new TextEncoder().encode(text);
  return { body, headers: { "Content-Type": form, Accept: `${form}, ${PROBLEM};q=0.5` } };
}

async function exchanged(path, method, request) {
  const begun = performance.now();
  const answer = await send(path, { ...request, method: method.toUpperCase(), key: key() });
  const body = new Uint8Array(await answer.arrayBuffer());
  const took = performance.now() - begun;
  const type = (answer.headers.get("content-type") ?? "").split(";")[0];
  const sent = request.body ? `${bytes(request.body.length)} of ${request.headers["Content-Type"]} sent; ` : "";
  if (answer.status === 401) $("key-box").open = true;
  const nodes = [
    element("p", { class: "help" }, `${sent}${bytes(body.length)} of ${type} came back in ${short(took)} ms.`),
    element("h3", {}, type === MESSAGE ? "Answer, decoded here" : "Answer"),
    element("pre", { tabindex: "0", role: "region", "aria-label": `Answer of ${path}` }, textOf(body, type)),
    element("details", {}, element("summary", {}, "Headers"), element("pre", { tabindex: "0", role: "region", "aria-label": `Headers of ${path}` }, [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n"))),
  ];
  return { status: `${answer.status} ${answer.statusText}`, nodes };
}

function textOf(body, type) {
  if (type === MESSAGE) return shown(decodeMessagePack(body));
  const text = new TextDecoder().decode(body);
  return type === JSON_TYPE || type === PROBLEM ? shown(parsed(text)) : text;
}

async function start() {
  $("key-form").addEventListener("submit", (event) => event.preventDefault());
  const document_ = await (await call("openapi.json", { key: key() })).json();
  $("title").textContent = `${document_.info.title} ${document_.info.version}`;
  $("description").replaceChildren(...prose(document_.info.description ?? ""));
  const entries = Object.entries(document_.paths).flatMap(([path, methods]) => METHODS.filter((method) => methods[method]).map((method) => [path, method, methods[method]]));
  $("toc").replaceChildren(...entries.map(([path, method]) => element("a", { href: `#${idOf(path)}` }, element("b", {}, method.toUpperCase()), path)));
  $("operations").replaceChildren(...entries.map(([path, method, described]) => operation(path, method, described, document_)));
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  // The playground may be switched off.
  $("home").hidden = !(await send("")).ok;
}

start().catch((error) => {
  $("operations").replaceChildren();
  $("problem").replaceChildren(element("strong", {}, "The description of the service cannot be read. "), error.message);
  $("problem").hidden = false;
});
