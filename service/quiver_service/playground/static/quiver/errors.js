/** Errors: every one is a `QuiverError` with a stable `code`, the field where there is one, and a text. */

export class QuiverError extends Error {
  /**
   * @param {string} detail What is wrong: the field, the limit and what was got.
   * @param {{code: string, field?: string | null, cause?: unknown}} known
   */
  constructor(detail, { code, field = null, cause }) {
    super(detail, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    this.code = code;
    this.field = field;
  }
}

/** Bytes that are no well-formed message, or a message whose parts do not fit each other. */
export class DecodeError extends QuiverError {}

/** A message by a method that this decoder does not know. The service's `/dequantize` may. */
export class UnsupportedMethod extends QuiverError {
  /** @param {string} method */
  constructor(method) {
    const shown = JSON.stringify(method.slice(0, 40));
    super(
      `method ${shown} cannot be decoded here; send the message to the service's /dequantize ` +
        "(QuiverClient.dequantize)",
      { code: "unsupported_method", field: "method" },
    );
    this.method = method;
  }
}

/** An argument that cannot be sent. */
export class InvalidArgument extends QuiverError {
  /** @param {string} detail @param {string | null} [field] */
  constructor(detail, field = null) {
    super(detail, { code: "invalid_argument", field });
  }
}

/**
 * `DecodeError` unless it holds.
 * @param {boolean} holds @param {string} field @param {string} limit @param {unknown} got
 * @param {string} [code]
 */
export function require(holds, field, limit, got, code = "invalid_option") {
  if (!holds) throw new DecodeError(`${field} ${limit}; got ${shown(got)}`, { code, field });
}

/** A value for people, no longer than a line. @param {any} value */
function shown(value) {
  if (Array.isArray(value)) return `[${value.slice(0, 9).map(word).join(", ")}${value.length > 9 ? ", ..." : ""}]`;
  return word(value);
}

/** What has no text of its own, as a map without a prototype, is told by its kind. @param {any} value */
function word(value) {
  const text = typeof value === "object" && value !== null ? "an object" : String(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

// -- of calls to a service ------------------------------------------------------------------

/** No answer: refused, reset, name not found. */
export class ConnectionFailed extends QuiverError {
  /** @param {string} detail @param {unknown} [cause] */
  constructor(detail, cause) {
    super(detail, { code: "connection_failed", cause });
  }
}

/** No complete answer within the call's own timeout. */
export class TimedOut extends QuiverError {
  /** @param {string} detail */
  constructor(detail) {
    super(detail, { code: "timed_out" });
  }
}

/** An answer that no service of this kind gives. */
export class BadAnswer extends QuiverError {
  /** @param {string} detail @param {unknown} [cause] */
  constructor(detail, cause) {
    super(detail, { code: "bad_answer", cause });
  }
}

/** The service refused: its problem document. */
export class ServiceError extends QuiverError {
  /** @param {number} status @param {Record<string, any>} problem @param {number | null} retryAfter Seconds. */
  constructor(status, problem, retryAfter) {
    const detail = typeof problem.detail === "string" ? problem.detail : `status ${status}`;
    super(detail, { code: String(problem.code ?? `http_${status}`), field: problem.field ?? null });
    this.status = status;
    this.problem = problem;
    this.requestId = problem.request_id ?? null;
    this.retryAfter = retryAfter;
  }
}

export class BadRequest extends ServiceError {}
export class Unauthorized extends ServiceError {}
export class TooLarge extends ServiceError {}
export class Invalid extends ServiceError {}
export class QuotaExceeded extends ServiceError {}
export class Unavailable extends ServiceError {}
export class DeadlineExceeded extends ServiceError {}

/** The error of an answer. @param {{status: number, headers: Headers, body: Uint8Array}} answer */
export function serviceError({ status, headers, body }) {
  const kinds = {
    400: BadRequest, 401: Unauthorized, 413: TooLarge, 422: Invalid, 429: QuotaExceeded, 503: Unavailable,
    504: DeadlineExceeded,
  };
  const Kind = kinds[status] ?? ServiceError;
  return new Kind(status, problemOf(body), secondsOf(headers.get("retry-after")));
}

function problemOf(body) {
  try {
    const found = JSON.parse(new TextDecoder().decode(body));
    return typeof found === "object" && found !== null ? found : {};
  } catch {
    return {}; // A proxy's page.
  }
}

/** Seconds of a Retry-After header, a number or a date. @param {string | null} value */
function secondsOf(value) {
  if (value === null) return null;
  const seconds = Number(value);
  if (value.trim() !== "" && seconds >= 0) return seconds;
  const when = Date.parse(value);
  return Number.isNaN(when) ? null : Math.max(0, (when - Date.now()) / 1000);
}
