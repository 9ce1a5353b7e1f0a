export { QuiverClient } from "./client.js";
export {
  BadAnswer, BadRequest, ConnectionFailed, DeadlineExceeded, DecodeError, Invalid, InvalidArgument,
  QuiverError, QuotaExceeded, ServiceError, TimedOut, TooLarge, Unauthorized, Unavailable, UnsupportedMethod,
} from "./errors.js";
export { decodeMessagePack, encodeMessagePack } from "./msgpack.js";
export { Tensor } from "./numbers.js";
export { QuantizedVector } from "./quantized.js";
