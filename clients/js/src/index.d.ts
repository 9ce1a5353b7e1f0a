/** What MessagePack can hold here. Integers beyond 2^53 - 1 are BigInt, `bin` is Uint8Array. */
export type Value =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | Value[]
  | { [key: string]: Value }
  | Map<string, Value>;

/** The value of exactly one message; maps become objects without a prototype. */
export function decodeMessagePack(
  bytes: Uint8Array | ArrayBuffer,
  limits?: { maxDepth?: number; maxItems?: number },
): Value;

export function encodeMessagePack(value: Value): Uint8Array;

export type Dtype = "float16" | "bfloat16" | "float32" | "float64";
export type Floats = Float32Array | Float64Array;

/** Numbers with type and shape; 16-bit types are held as float32. */
export class Tensor {
  constructor(dtype: Dtype, shape: readonly number[], values: Floats);
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly values: Floats;
}

export type Parameter = boolean | number | string;

export interface SidePart {
  readonly dtype: string;
  readonly values: ArrayLike<number> | ArrayLike<bigint>;
}

export interface Wrap {
  readonly scale: number | null;
  readonly entropy: { readonly symbols: "codes" | "bytes"; readonly size: number } | null;
  readonly outliers: { readonly positions: Float64Array; readonly values: Floats } | null;
}

/** A vector as level tables and packed codes, or as what a scheme makes; made by `fromBytes`. */
export class QuantizedVector {
  private constructor();
  readonly method: string;
  readonly bits: number;
  readonly numLevels: number;
  readonly shape: readonly number[];
  /** Of the vector that was quantized. */
  readonly dtype: Dtype;
  /** Values that share a table; null: all. */
  readonly blockSize: number | bigint | null;
  readonly seed: bigint;
  readonly levels: Tensor;
  readonly codes: Uint8Array;
  /** Expected squared error over squared norm. */
  readonly vnmse: number;
  readonly device: string;
  readonly timingsMs: Readonly<Record<string, number>>;
  readonly levelSets: number | null;
  readonly parameters: Readonly<Record<string, Parameter>> | null;
  readonly side: Readonly<Record<string, SidePart>> | null;
  readonly wrap: Wrap | null;
  /** Number of values. */
  readonly size: number;

  /**
   * Read one message; codes are a view of `bytes`.
   * @throws {DecodeError} Damaged, or parts that do not fit each other.
   * @throws {UnsupportedMethod} A method that is not known here.
   */
  static fromBytes(bytes: Uint8Array | ArrayBuffer): QuantizedVector;

  /** The message as bytes. */
  toBytes(): Uint8Array;

  /**
   * The decoded values in C order: Float64Array of float64 vectors, else Float32Array.
   * @param limits More than `maxValues` (2^28 unless given) are refused before memory is taken.
   * @throws {DecodeError} A code beyond its table, or too many values.
   */
  dequantize(limits?: { maxValues?: number }): Floats;
}

export type Vector = Floats | number[] | Tensor;

export interface QuantizeOptions {
  /** 1..8; or `numLevels`. */
  bits?: number;
  /** 2..256. */
  numLevels?: number;
  /** Any that `info()` lists. */
  method?: string;
  bins?: number;
  grid?: "robust" | "uniform";
  levelSets?: number;
  weights?: Vector | null;
  blockSize?: number | null;
  /** Drawn where absent: the answer tells it. */
  seed?: number | bigint;
  device?: "auto" | "cpu" | "gpu";
  worldSize?: number;
  rank?: number;
  sharedSeed?: number | bigint;
  levels?: Vector | null;
  parameters?: Record<string, Parameter>;
  outliers?: number;
  entropy?: boolean;
  feedbackScale?: boolean;
}

export interface CallOptions {
  signal?: AbortSignal;
  /** Milliseconds for the call with its retries. */
  timeout?: number;
}

export interface ClientOptions {
  apiKey?: string;
  fetch?: typeof fetch;
  /** Milliseconds for each call with its retries; 60 000 unless given. */
  timeout?: number;
  /** 4 unless given. */
  maxRetries?: number;
}

/** A client of one service. */
export class QuiverClient {
  constructor(url: string | URL, options?: ClientOptions);

  /** Quantize one vector; `shape` of its values in C order, unless it is flat. */
  quantize(
    vector: Vector,
    options?: QuantizeOptions & CallOptions & { shape?: readonly number[] },
  ): Promise<QuantizedVector>;

  /** Quantize at most 4096 vectors in one request, with a seed of its own for each. */
  quantizeMany(vectors: Vector[], options?: QuantizeOptions & CallOptions): Promise<QuantizedVector[]>;
  quantizeMany(
    vectors: Record<string, Vector> | Map<string, Vector>,
    options?: QuantizeOptions & CallOptions,
  ): Promise<Record<string, QuantizedVector>>;

  /** Decode on the service; `QuantizedVector.dequantize` needs none. */
  dequantize(message: QuantizedVector | Uint8Array, options?: CallOptions): Promise<Floats>;

  /** The weighted mean of vectors of one shape. */
  aggregate(
    vectors: (QuantizedVector | Uint8Array)[],
    options?: { weights?: number[]; quantize?: undefined } & CallOptions,
  ): Promise<Floats>;
  /** The same, quantized again. */
  aggregate(
    vectors: (QuantizedVector | Uint8Array)[],
    options: { weights?: number[]; quantize: QuantizeOptions } & CallOptions,
  ): Promise<QuantizedVector>;

  /** Limits, devices and methods of the service. */
  info(options?: CallOptions): Promise<Record<string, unknown>>;
}

/** Root of all errors raised on purpose; `code` is stable. */
export class QuiverError extends Error {
  readonly code: string;
  readonly field: string | null;
}
/** No well-formed message, or parts that do not fit each other. */
export class DecodeError extends QuiverError {}
/** A message by a method that is not known here. */
export class UnsupportedMethod extends QuiverError {
  readonly method: string;
}
/** An argument that cannot be sent. */
export class InvalidArgument extends QuiverError {}
export class ConnectionFailed extends QuiverError {}
export class TimedOut extends QuiverError {}
export class BadAnswer extends QuiverError {}
/** The service refused: its problem document. */
export class ServiceError extends QuiverError {
  readonly status: number;
  readonly problem: Readonly<Record<string, unknown>>;
  readonly requestId: string | null;
  /** Seconds that the service asked to wait. */
  readonly retryAfter: number | null;
}
/** 400 */
export class BadRequest extends ServiceError {}
/** 401 */
export class Unauthorized extends ServiceError {}
/** 413 */
export class TooLarge extends ServiceError {}
/** 422 */
export class Invalid extends ServiceError {}
/** 429 */
export class QuotaExceeded extends ServiceError {}
/** 503 */
export class Unavailable extends ServiceError {}
/** 504 */
export class DeadlineExceeded extends ServiceError {}
