// What the OpenAPI document says of values: which text stands for bytes, and what a reader should know.

/** Follow references of `document` until there is a schema. */
export function resolved(schema, document) {
  let found = schema ?? {};
  while (found.$ref) found = found.$ref.slice(2).split("/").reduce((node, part) => node[part], document);
  return found;
}

const alternatives = (schema) => [...(schema.anyOf ?? []), ...(schema.oneOf ?? []), ...(schema.allOf ?? [])];

/** The schemas that `value` may have: those of its kind. */
function candidates(value, schema, document) {
  const found = resolved(schema, document);
  return [found, ...alternatives(found).flatMap((one) => candidates(value, one, document))];
}

/** `value` of a JSON example as it is in a message: base64 text becomes bytes where the schema says binary. */
export function packed(value, schema, document) {
  const possible = candidates(value, schema, document);
  if (typeof value === "string") {
    const text = possible.some((one) => one.type === "string" && one.format !== "binary" && !one.contentEncoding);
    const binary = possible.some((one) => one.format === "binary");
    return binary && !text ? unbase64(value) : value;
  }
  if (Array.isArray(value)) {
    const items = { anyOf: possible.map((one) => one.items).filter(Boolean) };
    return value.map((item) => packed(item, items, document));
  }
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => {
      const known = possible.map((one) => one.properties?.[name] ?? (typeof one.additionalProperties === "object" ? one.additionalProperties : null));
      return [name, packed(item, { anyOf: known.filter(Boolean) }, document)];
    }));
  }
  return value;
}

/** Bytes of base64 text; raises an Error with the reason. */
export function unbase64(text) {
  let raw;
  try {
    raw = atob(text);
  } catch {
    throw new Error(`bytes must be base64; got "${text.slice(0, 30)}"`);
  }
  return Uint8Array.from(raw, (letter) => letter.charCodeAt(0));
}

/** The text of a JSON value; whole numbers beyond 2^53 keep their digits where the browser shows them. */
export function parsed(text) {
  return JSON.parse(text, (_, value, context) => {
    const source = context?.source;
    return typeof value === "number" && !Number.isSafeInteger(value) && /^\d+$/.test(source ?? "") ? BigInt(source) : value;
  });
}

const MOST_SHOWN = 480;

/** A decoded message as text for people: bytes as their number and the beginning of base64. */
export function shown(value, indent = "") {
  if (value instanceof Uint8Array) {
    const text = btoa(String.fromCharCode(...value.subarray(0, MOST_SHOWN)));
    return `bin(${value.length}) ${text}${value.length > MOST_SHOWN ? "..." : ""}`;
  }
  if (Array.isArray(value)) {
    const simple = value.every((item) => item === null || typeof item !== "object");
    if (simple) return `[${value.slice(0, 64).map((item) => shown(item)).join(", ")}${value.length > 64 ? ", ..." : ""}]`;
    return `[\n${value.slice(0, 64).map((item) => `${indent}  ${shown(item, `${indent}  `)}`).join(",\n")}\n${indent}]`;
  }
  if (value !== null && typeof value === "object") {
    const rows = Object.entries(value).map(([name, item]) => `${indent}  ${JSON.stringify(name)}: ${shown(item, `${indent}  `)}`);
    return rows.length ? `{\n${rows.join(",\n")}\n${indent}}` : "{}";
  }
  return typeof value === "bigint" ? String(value) : JSON.stringify(value);
}

/** The type of a schema in a few words. */
export function typeOf(schema, document) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.format === "binary") return "bin";
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.length > 6 ? `one of ${schema.enum.length} names` : schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  const kinds = alternatives(schema);
  if (kinds.length) return [...new Set(kinds.map((one) => typeOf(one, document)))].join(" | ");
  const types = [schema.type ?? "any"].flat();
  return types.map((type) => (type === "array" && schema.items ? `array of ${typeOf(schema.items, document)}` : type === "null" ? "nil" : type)).join(" | ");
}

/** Keys of a schema of maps as rows: name, type, meaning. */
export function rowsOf(schema, document) {
  const found = resolved(schema, document);
  const needed = new Set(found.required ?? []);
  return Object.entries(found.properties ?? {}).map(([name, property]) => {
    const inner = resolved(property, document);
    const limits = [
      inner.minimum !== undefined || inner.maximum !== undefined ? `${inner.minimum ?? ""}..${inner.maximum ?? ""}.` : "",
      inner.default !== undefined ? `Default: ${JSON.stringify(inner.default)}.` : "",
    ];
    const meaning = [property.description ?? inner.description ?? "", ...limits].filter(Boolean).join(" ");
    return [`${name}${needed.has(name) ? " *" : ""}`, typeOf(property, document), meaning];
  });
}
