// Reads a quantized-vector message of the QUIVER service (docs/wire-format.md): one header, C++17, no libraries.
//
//     std::vector<std::uint8_t> message = ...;
//     quiver::Vector v = quiver::decode(message.data(), message.size());   // v.values, v.shape, v.dtype
//
// Methods exact, approx, accelerated, uniform, given, simba, sign, seq, lsq, signed_binary, qsgd, terngrad, nuqsgd, amq, alq, pow2 and
// fp4, and whatever may be around them (outliers, entropy coding, a scale). Others throw `Unsupported`: the service's POST /dequantize
// decodes them. Everything else that is wrong throws `Error`; lengths are checked before memory is taken.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace quiver {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A method that is not known here.
struct Unsupported : Error {
    using Error::Error;
};

// Decoded values of every type are exact as double.
struct Vector {
    std::string method, dtype;
    std::vector<std::uint64_t> shape;
    std::uint64_t seed = 0;
    std::vector<double> values;
};

namespace detail {

using std::size_t;
using std::uint64_t;
using std::uint8_t;

// Bytes that belong to somebody else.
class Bytes {
  public:
    Bytes() = default;
    Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
    size_t size() const { return size_; }
    const uint8_t* begin() const { return data_; }
    const uint8_t* end() const { return data_ + size_; }
    uint8_t operator[](size_t at) const { return data_[at]; }
    Bytes part(size_t at, size_t count) const { return {data_ + at, count}; }
    bool operator==(const Bytes& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

  private:
    const uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

inline void require(bool holds, const std::string& what) {
    if (!holds) throw Error(what);
}

// -- MessagePack --------------------------------------------------------------------------------------------------------------

struct Value {
    enum Kind { nil, boolean, integer, real, text, bin, array, map } kind = nil;
    bool negative = false;    // of an integer, which is then below zero; of a boolean whether it is true
    uint64_t whole = 0;       // of an integer that is not negative
    double number = 0;        // of an integer or a real
    Bytes bytes;              // of text or bin
    std::vector<Value> items; // of an array; of a map, the values
    std::vector<Bytes> keys;  // of a map

    bool is_number() const { return kind == integer || kind == real; }
    std::string string() const { return {bytes.begin(), bytes.end()}; }
    const Value* find(std::string_view key) const {
        for (size_t i = 0; i < keys.size(); ++i) {
            if (std::equal(keys[i].begin(), keys[i].end(), key.begin(), key.end())) return &items[i];
        }
        return nullptr;
    }
};

// Characters of UTF-8; none if it is something else.
inline std::optional<size_t> characters(Bytes text) {
    size_t count = 0;
    for (size_t i = 0; i < text.size(); ++count) {
        const uint8_t first = text[i];
        const size_t more = first < 0x80 ? 0 : first < 0xc2 ? 9 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 9;
        if (more == 9 || more >= text.size() - i) return std::nullopt;
        for (size_t k = 1; k <= more; ++k) {
            if ((text[i + k] & 0xc0) != 0x80) return std::nullopt;
        }
        const uint8_t second = more > 0 ? text[i + 1] : 0;
        const bool long_form = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
        const bool beyond = (first == 0xed && second >= 0xa0) || (first == 0xf4 && second >= 0x90);
        if (long_form || beyond) return std::nullopt;
        i += more + 1;
    }
    return count;
}

class Reader {
  public:
    explicit Reader(Bytes bytes) : bytes_(bytes) {}

    Value message() {
        Value found = value(0);
        require(at_ == bytes_.size(), "bytes follow the message");
        return found;
    }

  private:
    static constexpr size_t max_depth = 6, max_items = 65536;

    // The next `count` bytes, which are there.
    Bytes take(uint64_t count) {
        require(count <= bytes_.size() - at_, "message is cut short");
        at_ += count;
        return bytes_.part(at_ - count, count);
    }

    // A number whose highest byte comes first.
    uint64_t big(size_t width) {
        uint64_t found = 0;
        for (uint8_t byte : take(width)) found = found << 8 | byte;
        return found;
    }

    uint8_t first() {
        require(items_++ < max_items, "message holds too many values");
        return take(1)[0];
    }

    Value value(size_t depth) {
        const uint8_t first = this->first();
        if (first < 0x80) return unsigned_of(first);
        if (first >= 0xe0) return signed_of(static_cast<std::int8_t>(first));
        if (first < 0x90) return map(first & 15, depth);
        if (first < 0xa0) return array(first & 15, depth);
        if (first < 0xc0) return text(first & 31);
        switch (first) {
            case 0xc0: return {};
            case 0xc2: case 0xc3: return of(Value::boolean, first == 0xc3);
            case 0xc4: case 0xc5: case 0xc6: return bin(big(size_t{1} << (first - 0xc4)));
            case 0xca: return real_of(as<float>(static_cast<std::uint32_t>(big(4))));
            case 0xcb: return real_of(as<double>(big(8)));
            case 0xcc: case 0xcd: case 0xce: case 0xcf: return unsigned_of(big(size_t{1} << (first - 0xcc)));
            case 0xd0: return signed_of(static_cast<std::int8_t>(big(1)));
            case 0xd1: return signed_of(static_cast<std::int16_t>(big(2)));
            case 0xd2: return signed_of(static_cast<std::int32_t>(big(4)));
            case 0xd3: return signed_of(static_cast<std::int64_t>(big(8)));
            case 0xd9: case 0xda: case 0xdb: return text(big(size_t{1} << (first - 0xd9)));
            case 0xdc: case 0xdd: return array(big(first == 0xdc ? 2 : 4), depth);
            case 0xde: case 0xdf: return map(big(first == 0xde ? 2 : 4), depth);
            default: throw Error("a byte starts no value allowed here (extension types are not accepted)");
        }
    }

    template <class Number, class Word>
    static Number as(Word word) {
        static_assert(sizeof(Number) == sizeof(Word));
        Number found;
        std::memcpy(&found, &word, sizeof found);
        return found;
    }

    static Value of(Value::Kind kind, bool negative = false) {
        Value found;
        found.kind = kind;
        found.negative = negative;
        return found;
    }

    static Value unsigned_of(uint64_t whole) {
        Value found = of(Value::integer);
        found.whole = whole;
        found.number = static_cast<double>(whole);
        return found;
    }

    static Value signed_of(std::int64_t whole) {
        if (whole >= 0) return unsigned_of(static_cast<uint64_t>(whole));
        Value found = of(Value::integer, true);
        found.number = static_cast<double>(whole);
        return found;
    }

    static Value real_of(double number) {
        Value found = of(Value::real);
        found.number = number;
        return found;
    }

    Value bin(uint64_t size) {
        Value found = of(Value::bin);
        found.bytes = take(size);
        return found;
    }

    Value text(uint64_t size) {
        Value found = of(Value::text);
        found.bytes = take(size);
        require(characters(found.bytes).has_value(), "text is not UTF-8");
        return found;
    }

    // The depth inside a container of `size` values, each a byte at least.
    size_t inside(uint64_t size, size_t depth) const {
        require(size <= bytes_.size() - at_, "message is cut short");
        require(size == 0 || depth < max_depth, "message nests too deep");
        return depth + 1;
    }

    Value array(uint64_t size, size_t depth) {
        Value found = of(Value::array);
        depth = inside(size, depth);
        for (uint64_t i = 0; i < size; ++i) found.items.push_back(value(depth));
        return found;
    }

    Value map(uint64_t size, size_t depth) {
        Value found = of(Value::map);
        depth = inside(size, depth);
        for (uint64_t i = 0; i < size; ++i) {
            const uint8_t first = this->first();
            const bool is_short = first >= 0xa0 && first < 0xc0, is_long = first >= 0xd9 && first <= 0xdb;
            require(is_short || is_long, "a map key is not text");
            const Bytes key = text(is_short ? first & 31 : big(size_t{1} << (first - 0xd9))).bytes;
            require(std::find(found.keys.begin(), found.keys.end(), key) == found.keys.end(), "a key appears twice in one map");
            found.keys.push_back(key);
            found.items.push_back(value(depth));
        }
        return found;
    }

    Bytes bytes_;
    size_t at_ = 0, items_ = 0;
};

// -- numbers ------------------------------------------------------------------------------------------------------------------

inline uint64_t little(Bytes data, size_t at, size_t width) {
    uint64_t found = 0;
    for (size_t i = width; i-- > 0;) found = found << 8 | data[at + i];
    return found;
}

inline double half(unsigned word) {
    const int exponent = static_cast<int>(word >> 10 & 31), fraction = static_cast<int>(word & 1023);
    const double sign = word & 0x8000 ? -1 : 1;
    if (exponent == 31) return fraction ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline double float_of(std::uint32_t word) {
    float found;
    std::memcpy(&found, &word, sizeof found);
    return found;
}

inline size_t item_bytes(const std::string& dtype) {
    static const std::map<std::string, size_t> known = {
        {"float16", 2}, {"bfloat16", 2}, {"float32", 4}, {"float64", 8}, {"int8", 1}, {"int16", 2}, {"int32", 4},
        {"int64", 8}, {"uint8", 1}, {"uint16", 2}, {"uint32", 4}, {"uint64", 8}, {"bool", 1}};
    const auto found = known.find(dtype);
    return found == known.end() ? 0 : found->second;
}

inline bool is_vector_type(const std::string& dtype) {
    return dtype == "float16" || dtype == "bfloat16" || dtype == "float32" || dtype == "float64";
}

// The numbers of little-endian bytes: floating types, and integers of at most 32 bits, the only ones that are looked at.
inline std::vector<double> numbers(Bytes data, const std::string& dtype) {
    const size_t width = item_bytes(dtype);
    require(width > 0, "unknown type of numbers");
    require(data.size() % width == 0, "bytes that are no whole number of items");
    std::vector<double> found(data.size() / width);
    for (size_t i = 0; i < found.size(); ++i) {
        const uint64_t word = little(data, i * width, width);
        if (dtype == "float16") found[i] = half(static_cast<unsigned>(word));
        else if (dtype == "bfloat16") found[i] = float_of(static_cast<std::uint32_t>(word << 16));
        else if (dtype == "float32") found[i] = float_of(static_cast<std::uint32_t>(word));
        else if (dtype == "float64") std::memcpy(&found[i], &word, sizeof word);
        else if (dtype[0] == 'i') found[i] = static_cast<double>(static_cast<std::int64_t>(word << (64 - 8 * width)) >> (64 - 8 * width));
        else found[i] = static_cast<double>(word);
    }
    return found;
}

struct Limits {
    double largest;
    int digits, least; // bits of the significand; least normal exponent
};

inline Limits limits(const std::string& dtype) {
    if (dtype == "float16") return {65504, 11, -14};
    if (dtype == "bfloat16") return {std::ldexp(2 - std::ldexp(1, -7), 127), 8, -126};
    if (dtype == "float32") return {std::numeric_limits<float>::max(), 24, -126};
    return {std::numeric_limits<double>::max(), 53, -1022};
}

// To the nearest number of a type with so many digits, ties to even; infinite beyond its largest.
inline double nearest(double x, const Limits& type) {
    if (x == 0 || !std::isfinite(x)) return x;
    const int step = std::max(std::ilogb(x), type.least) - type.digits + 1;
    const double near = std::ldexp(std::nearbyint(std::ldexp(x, -step)), step);
    return std::fabs(near) > type.largest ? std::copysign(std::numeric_limits<double>::infinity(), x) : near;
}

// bfloat16 comes by way of float32, as in the library that writes the messages.
inline double rounded(double x, const std::string& dtype) {
    if (dtype == "float64") return x;
    if (dtype == "bfloat16") x = nearest(x, limits("float32"));
    return nearest(x, limits(dtype));
}

// Rounded once, never infinite; zeros have no sign.
inline double clipped(double x, const std::string& dtype) {
    const double largest = limits(dtype).largest;
    return rounded(std::clamp(x, -largest, largest), dtype) + 0.0;
}

// -- packed codes -------------------------------------------------------------------------------------------------------------

inline uint64_t ceil_div(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

// Bytes of `size` codes; each block begins on a byte. A block is at most `size`.
inline uint64_t packed_size(uint64_t size, unsigned bits, uint64_t block) {
    return size / block * ceil_div(block * bits, 8) + ceil_div(size % block * bits, 8);
}

inline std::vector<uint8_t> unpack(Bytes packed, uint64_t size, unsigned bits, uint64_t block) {
    std::vector<uint8_t> codes(size);
    size_t at = 0;
    for (uint64_t start = 0; start < size; start += block) {
        unsigned word = 0, held = 0;
        for (uint64_t i = start; i < std::min(start + block, size); ++i) {
            if (held < bits) {
                word |= static_cast<unsigned>(packed[at++]) << held;
                held += 8;
            }
            codes[i] = static_cast<uint8_t>(word & ((1u << bits) - 1));
            word >>= bits;
            held -= bits;
        }
    }
    return codes;
}

inline std::vector<uint8_t> pack(const std::vector<uint8_t>& codes, unsigned bits, uint64_t block) {
    std::vector<uint8_t> packed;
    for (uint64_t start = 0; start < codes.size(); start += block) {
        unsigned word = 0, held = 0;
        for (uint64_t i = start; i < std::min<uint64_t>(start + block, codes.size()); ++i) {
            word |= static_cast<unsigned>(codes[i]) << held;
            held += bits;
            if (held >= 8) {
                packed.push_back(static_cast<uint8_t>(word));
                word >>= 8;
                held -= 8;
            }
        }
        if (held > 0) packed.push_back(static_cast<uint8_t>(word));
    }
    return packed;
}

// Five ternary codes a byte.
inline uint64_t trits_size(uint64_t size, uint64_t block) {
    return size / block * ceil_div(block, 5) + ceil_div(size % block, 5);
}

inline std::vector<uint8_t> trits(Bytes packed, uint64_t size, uint64_t block) {
    std::vector<uint8_t> codes(size);
    size_t at = 0;
    for (uint64_t start = 0; start < size; start += block) {
        unsigned byte = 0;
        for (uint64_t i = start; i < std::min(start + block, size); ++i) {
            if ((i - start) % 5 == 0) {
                byte = packed[at++];
                require(byte < 243, "a byte is no five ternary codes");
            }
            codes[i] = static_cast<uint8_t>(byte % 3);
            byte /= 3;
        }
    }
    return codes;
}

// -- Philox4x32-10 ------------------------------------------------------------------------------------------------------------

inline std::array<std::uint32_t, 4> philox(uint64_t seed, uint64_t group, std::uint32_t stream) {
    std::array<std::uint32_t, 4> c = {static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(group >> 32), stream, 0};
    auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p = uint64_t{0xd2511f53} * c[0], q = uint64_t{0xcd9e8d57} * c[2];
        c = {static_cast<std::uint32_t>(q >> 32) ^ c[1] ^ key0, static_cast<std::uint32_t>(q),
             static_cast<std::uint32_t>(p >> 32) ^ c[3] ^ key1, static_cast<std::uint32_t>(p)};
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return c;
}

// -- entropy coding -----------------------------------------------------------------------------------------------------------

// The number at `at`, seven bits a byte, in the fewest bytes; `at` moves on.
inline uint64_t varint(Bytes data, size_t& at, unsigned most) {
    uint64_t value = 0;
    for (unsigned length = 0; length < most && at < data.size(); ++length) {
        const uint8_t byte = data[at++];
        value |= static_cast<uint64_t>(byte & 127) << (7 * length);
        if (byte < 128) {
            require(byte > 0 || length == 0, "a varint is longer than needed");
            return value;
        }
    }
    throw Error("a varint is cut short or too long");
}

// The symbols of a rANS stream, `size` of them.
inline std::vector<uint8_t> symbols(Bytes data, uint64_t size, unsigned alphabet) {
    require(data.size() >= 3, "a coded stream has 3 bytes at least");
    const unsigned precision = data[0];
    const uint64_t chunk = little(data, 1, 2);
    require(precision >= 8 && precision <= 15 && chunk >= 1 && chunk <= 16384, "a coded stream with a wrong head");
    size_t at = 3;
    std::vector<std::uint32_t> ends = {0};
    std::vector<uint8_t> slots;
    for (unsigned symbol = 0; symbol < alphabet; ++symbol) {
        const uint64_t frequency = varint(data, at, 3);
        require(frequency <= (uint64_t{1} << precision) - ends.back(), "frequencies that add up to too much");
        ends.push_back(ends.back() + static_cast<std::uint32_t>(frequency));
        slots.resize(ends.back(), static_cast<uint8_t>(symbol));
    }
    require(ends.back() == 1u << precision, "frequencies that add up to too little");
    if (at % 2 == 1) {
        require(at < data.size() && data[at] == 0, "no zero byte after the tables");
        ++at;
    }
    const uint64_t chunks = ceil_div(size, chunk);
    require((data.size() - at) / 6 >= chunks, "a coded stream is cut short");
    uint64_t words = 0;
    for (uint64_t i = 0; i < chunks; ++i) words += little(data, at + 2 * i, 2) + 2;
    require(data.size() - at == 2 * chunks + 2 * words, "a coded stream whose chunks have another length");
    std::vector<uint8_t> found(size);
    size_t place = at + 2 * chunks;
    for (uint64_t i = 0; i < chunks; ++i) {
        const size_t end = place + 4 + 2 * little(data, at + 2 * i, 2);
        uint64_t x = little(data, place, 4);
        place += 4;
        for (uint64_t k = i * chunk; k < std::min((i + 1) * chunk, size); ++k) {
            const auto slot = static_cast<std::uint32_t>(x & ((1u << precision) - 1));
            const unsigned symbol = slots[slot];
            found[k] = static_cast<uint8_t>(symbol);
            x = (ends[symbol + 1] - ends[symbol]) * (x >> precision) + slot - ends[symbol];
            if (x < 65536) {
                require(place < end, "words that do not fit the symbols");
                x = x << 16 | little(data, place, 2);
                place += 2;
            }
        }
        require(x == 65536 && place == end, "words that do not fit the symbols");
    }
    return found;
}

// -- the message --------------------------------------------------------------------------------------------------------------

struct Part {
    std::string dtype;
    std::vector<double> values;
};

struct Message {
    std::string method, dtype;
    unsigned bits = 0, num_levels = 0;
    std::vector<uint64_t> shape;
    uint64_t size = 0, block = 0, seed = 0;
    bool blocked = false, scheme = false;
    unsigned level_sets = 0;
    std::vector<double> levels;
    Bytes codes;
    std::map<std::string, std::string> texts; // parameters
    std::map<std::string, Part> side;
    bool entropy = false, coded_bytes = false;
    uint64_t payload = 0; // bytes of an entropy coded payload
    std::optional<double> scale;
    std::vector<uint64_t> places;
    std::vector<double> kept;

    uint64_t blocks() const { return ceil_div(size, block); }
    std::string levels_type() const { return dtype == "float64" ? "float64" : "float32"; }
};

inline const Value& get(const Value& map, const char* key) {
    const Value* found = map.find(key);
    require(found != nullptr, std::string("the key ") + key + " is missing");
    return *found;
}

// A value that may be absent; nil counts as absent.
inline const Value* option(const Value& map, const char* key) {
    const Value* found = map.find(key);
    return found == nullptr || found->kind == Value::nil ? nullptr : found;
}

inline void known_keys(const Value& map, std::initializer_list<std::string_view> keys, const char* what) {
    require(map.kind == Value::map, std::string(what) + " must be a map");
    for (const Bytes& key : map.keys) {
        const std::string text(key.begin(), key.end());
        require(std::find(keys.begin(), keys.end(), text) != keys.end(), std::string(what) + " has an unknown key " + text.substr(0, 40));
    }
}

inline uint64_t whole(const Value& value, uint64_t low, uint64_t high, const char* what) {
    const bool fits = value.kind == Value::integer && !value.negative && value.whole >= low && value.whole <= high;
    require(fits, std::string(what) + " must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
    return value.whole;
}

inline std::string text(const Value& value, const char* what) {
    require(value.kind == Value::text, std::string(what) + " must be text");
    return value.string();
}

inline Bytes bin(const Value& value, const char* what) {
    require(value.kind == Value::bin, std::string(what) + " must be bin");
    return value.bytes;
}

inline std::vector<uint64_t> shape_of(const Value& value, uint64_t& size) {
    constexpr uint64_t most = uint64_t{1} << 40;
    require(value.kind == Value::array && value.items.size() <= 8, "shape must be an array of at most 8 integers");
    std::vector<uint64_t> shape;
    double product = 1; // Exact up to the limit, and far beyond it rather than below.
    for (const Value& item : value.items) {
        shape.push_back(whole(item, 0, most, "a dimension"));
        product *= static_cast<double>(shape.back());
    }
    require(product <= static_cast<double>(most), "shape must have at most 2^40 elements");
    size = static_cast<uint64_t>(product);
    return shape;
}

inline bool all_finite(const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
}

inline void short_text(const Value& value, const char* what) {
    require(value.kind == Value::text, std::string(what) + " must be text");
    const size_t count = *characters(value.bytes);
    require(count >= 1 && count <= 32, std::string(what) + " must have 1..32 characters");
}

// What a scheme's levels, parameters and side information may be.
struct Known {
    std::vector<unsigned> counts;
    std::map<std::string, std::vector<std::string>> texts; // values, the default first; of a number: none
    std::map<std::string, std::pair<double, double>> numbers = {};
};

inline const Known* known(const std::string& method) {
    static const std::vector<unsigned> widths = {4, 8, 16, 32, 64, 128, 256};
    static const auto all = [] {
        std::vector<unsigned> odd = widths, every;
        for (unsigned n = 3; n <= 256; ++n) every.push_back(n);
        for (unsigned n = 3; n < 256; n += 2) odd.push_back(n);
        const std::vector<std::string> how = {"search", "max", "mean"}, l2 = {"l2", "linf"}, linf = {"linf", "l2"}, model = {"norms", "pooled"};
        return std::map<std::string, Known>{
            {"sign", {{2}, {}}},
            {"seq", {{2, 3, 4}, {{"scale", how}}}},
            {"lsq", {{8, 16}, {{"scale", how}}}},
            {"signed_binary", {{2}, {}}},
            {"qsgd", {odd, {{"norm", l2}}}},
            {"terngrad", {{3, 4}, {{"norm", linf}}}},
            {"nuqsgd", {widths, {{"norm", l2}}}},
            {"amq", {widths, {{"norm", l2}, {"model", model}}, {{"multiplier", {0, 0.999}}}}},
            {"alq", {every, {{"norm", l2}, {"model", model}}}},
            {"pow2", {widths, {{"rounding", {"linear", "log", "unbiased"}}, {"top", {"search", "max"}}}}},
            {"fp4", {{16}, {{"scale", {"nvfp4", "mx", "power", "float32"}}, {"rounding", {"nearest", "stochastic"}}}}},
        };
    }();
    const auto found = all.find(method);
    return found == all.end() ? nullptr : &found->second;
}

inline void read_scheme(const Value& map, Message& m) {
    const Value& given = get(map, "parameters");
    require(given.kind == Value::map, "parameters must be a map");
    const Known* scheme = known(m.method);
    if (scheme == nullptr) throw Unsupported("method " + m.method + " cannot be decoded here: send the message to POST /dequantize");
    require(std::count(scheme->counts.begin(), scheme->counts.end(), m.num_levels) == 1, "num_levels must be one that the method takes");
    unsigned fewest = 1;
    while (1u << fewest < m.num_levels) ++fewest;
    require(m.bits == fewest, "bits must be the fewest that hold a code");
    for (const auto& [name, values] : scheme->texts) m.texts[name] = values[0];
    for (size_t i = 0; i < given.keys.size(); ++i) {
        const std::string name(given.keys[i].begin(), given.keys[i].end());
        const Value& value = given.items[i];
        const auto texts = scheme->texts.find(name);
        if (texts != scheme->texts.end()) {
            const std::string chosen = text(value, "a parameter");
            require(std::count(texts->second.begin(), texts->second.end(), chosen) == 1, "a parameter of an unknown value");
            m.texts[name] = chosen;
            continue;
        }
        const auto range = scheme->numbers.find(name);
        require(range != scheme->numbers.end(), "a parameter that the method does not have");
        const bool fits = value.is_number() && value.number >= range->second.first && value.number <= range->second.second;
        require(fits, "a parameter out of range");
    }
    const Value* side = option(map, "side");
    if (side == nullptr) return;
    require(side->kind == Value::map && side->items.size() <= 8, "side must be a map of at most 8 parts");
    for (size_t i = 0; i < side->items.size(); ++i) {
        const Value& part = side->items[i];
        const size_t count = *characters(side->keys[i]);
        require(count >= 1 && count <= 32, "names in side must have 1..32 characters");
        require(part.kind == Value::array && part.items.size() == 2, "side must hold a type and bin each");
        const std::string dtype = text(part.items[0], "a type");
        m.side[std::string(side->keys[i].begin(), side->keys[i].end())] = {dtype, numbers(bin(part.items[1], "side"), dtype)};
    }
}

inline void read_levels(const Value& map, Message& m) {
    known_keys(map, {"dtype", "shape", "data"}, "levels");
    uint64_t size = 0;
    const std::vector<uint64_t> shape = shape_of(get(map, "shape"), size);
    const std::string dtype = text(get(map, "dtype"), "levels.dtype");
    require(dtype == m.levels_type(), "levels.dtype must be " + m.levels_type());
    const Bytes data = bin(get(map, "data"), "levels.data");
    require(data.size() == size * item_bytes(dtype), "levels.data has another size than its shape");
    std::vector<uint64_t> wanted = {m.num_levels};
    if (m.scheme) {
        require(shape.size() == 1 && (shape[0] == 0 || shape[0] == m.num_levels), "levels.shape must be [0] or [num_levels]");
    } else {
        if (m.level_sets > 0) wanted.insert(wanted.begin(), m.level_sets);
        if (m.blocked) wanted.insert(wanted.begin(), m.blocks());
        require(shape == wanted, "levels.shape must be one table for each block");
    }
    m.levels = numbers(data, dtype);
    for (size_t i = 0; i < m.levels.size(); ++i) {
        const double as_type = m.scheme ? m.levels[i] : rounded(m.levels[i], m.dtype);
        require(std::isfinite(m.levels[i]) && std::isfinite(as_type), "levels must be finite");
        require(i % m.num_levels == 0 || m.levels[i] >= m.levels[i - 1], "levels must ascend");
    }
}

inline void read_wrap(const Value& map, Message& m) {
    known_keys(map, {"outliers", "entropy", "scale"}, "wrap");
    const Value *scale = option(map, "scale"), *entropy = option(map, "entropy"), *outliers = option(map, "outliers");
    require(scale || entropy || outliers, "wrap must hold outliers, entropy or scale");
    if (scale != nullptr) {
        require(scale->is_number() && scale->number > 0 && scale->number < 1, "wrap.scale must be between 0 and 1");
        m.scale = scale->number;
    }
    if (entropy != nullptr) {
        known_keys(*entropy, {"symbols", "size"}, "wrap.entropy");
        const std::string kind = text(get(*entropy, "symbols"), "wrap.entropy.symbols");
        require(kind == "codes" || kind == "bytes", "wrap.entropy.symbols must be codes or bytes");
        m.entropy = true;
        m.coded_bytes = kind == "bytes";
        require(m.scheme || !m.coded_bytes, "wrap.entropy.symbols must be codes");
        m.payload = whole(get(*entropy, "size"), 1, uint64_t{1} << 43, "wrap.entropy.size");
        const bool fits = m.coded_bytes || m.payload == packed_size(m.size, m.bits, m.block);
        require(fits, "wrap.entropy.size must be that of the packed codes");
    }
    if (outliers == nullptr) return;
    known_keys(*outliers, {"indices", "values"}, "wrap.outliers");
    const Bytes data = bin(get(*outliers, "values"), "wrap.outliers.values"), indices = bin(get(*outliers, "indices"), "wrap.outliers.indices");
    m.kept = numbers(data, m.dtype);
    require(!m.kept.empty() && all_finite(m.kept), "wrap.outliers.values must be finite numbers, at least one");
    size_t at = 0;
    uint64_t next = 0;
    for (size_t i = 0; i < m.kept.size(); ++i) {
        const uint64_t gap = varint(indices, at, 6);
        require(next < m.size && gap < m.size - next, "wrap.outliers.indices must be below the size");
        m.places.push_back(next + gap);
        next += gap + 1;
    }
    require(at == indices.size(), "wrap.outliers.indices must hold one varint for each value");
}

inline Message read(Bytes bytes) {
    const Value map = Reader(bytes).message();
    known_keys(map, {"v", "method", "bits", "num_levels", "shape", "dtype", "block_size", "seed", "levels", "codes", "vnmse",
                     "device", "timings_ms", "level_sets", "parameters", "side", "wrap"}, "the message");
    Message m;
    whole(get(map, "v"), 1, 1, "v");
    short_text(get(map, "method"), "method");
    m.method = get(map, "method").string();
    m.bits = static_cast<unsigned>(whole(get(map, "bits"), 1, 8, "bits"));
    m.num_levels = static_cast<unsigned>(whole(get(map, "num_levels"), 2, 1u << m.bits, "num_levels"));
    m.shape = shape_of(get(map, "shape"), m.size);
    require(m.size > 0, "shape must hold at least one value");
    m.dtype = text(get(map, "dtype"), "dtype");
    require(is_vector_type(m.dtype), "dtype must be float16, bfloat16, float32 or float64");
    const Value& block = get(map, "block_size");
    m.blocked = block.kind != Value::nil;
    m.block = m.blocked ? std::min(m.size, whole(block, 1, (uint64_t{1} << 63) - 1, "block_size")) : m.size;
    m.seed = whole(get(map, "seed"), 0, std::numeric_limits<uint64_t>::max(), "seed");
    const Value& vnmse = get(map, "vnmse");
    require(vnmse.is_number() && std::isfinite(vnmse.number) && vnmse.number >= 0, "vnmse must be finite and not negative");
    if (const Value* device = map.find("device")) short_text(*device, "device");
    if (const Value* timings = map.find("timings_ms")) {
        require(timings->kind == Value::map && timings->items.size() <= 16, "timings_ms must be a map of at most 16 numbers");
        for (const Value& item : timings->items) require(item.is_number() && std::isfinite(item.number), "timings_ms must be finite");
    }
    const Value* sets = option(map, "level_sets");
    require((sets != nullptr) == (m.method == "simba"), "level_sets is for method simba, and only for it");
    if (sets != nullptr) {
        m.level_sets = static_cast<unsigned>(whole(*sets, 2, 8, "level_sets"));
        require(!m.blocked, "block_size must be null for method simba");
    }
    m.codes = bin(get(map, "codes"), "codes");
    m.scheme = option(map, "parameters") != nullptr;
    require(m.scheme || option(map, "side") == nullptr, "side needs parameters");
    if (m.scheme) read_scheme(map, m);
    read_levels(get(map, "levels"), m);
    if (const Value* wrap = option(map, "wrap")) read_wrap(*wrap, m);
    return m;
}

// -- decoding -----------------------------------------------------------------------------------------------------------------

using Table = std::vector<double>;

// Refuse side information of other names, types or lengths.
inline void check_side(const Message& m, const std::map<std::string, std::pair<std::string, uint64_t>>& wanted) {
    require(m.side.size() == wanted.size(), "side must hold the parts of the method");
    for (const auto& [name, of] : wanted) {
        const auto found = m.side.find(name);
        require(found != m.side.end(), "side must hold " + name);
        require(found->second.dtype == of.first, "side." + name + " must hold " + of.first + " numbers");
        require(found->second.values.size() == of.second, "side." + name + " must hold " + std::to_string(of.second) + " numbers");
    }
}

inline const std::vector<double>& side(const Message& m, const std::string& name) { return m.side.at(name).values; }

inline double code_of(const Table& table, unsigned code) {
    require(code < table.size(), "a code points beyond the table");
    return table[code];
}

// Entries times the scale of each block.
inline std::vector<double> products(const Message& m, const std::vector<uint8_t>& codes, const Table& table, const std::vector<double>& scales, uint64_t block) {
    std::vector<double> values(m.size);
    for (uint64_t i = 0; i < m.size; ++i) values[i] = clipped(code_of(table, codes[i]) * scales[i / block], m.dtype);
    return values;
}

// The fixed table of a scheme; empty where it travels.
inline Table table_of(const Message& m) {
    Table table;
    const int half = (static_cast<int>(m.num_levels) - 1) / 2;
    if (m.method == "sign") return {-1, 1};
    if (m.method == "signed_binary") return {0, 1};
    if (m.method == "lsq") {
        for (int n = -static_cast<int>(m.num_levels) / 2; n < static_cast<int>(m.num_levels) / 2; ++n) table.push_back(n);
    } else if (m.method == "seq") {
        if (m.num_levels == 2) return {-1, 1};
        if (m.num_levels == 3) return {-2.0 / 3, 0, 2.0 / 3};
        return {-0.75, -0.25, 0.25, 0.75};
    } else if (m.method == "qsgd" || m.method == "terngrad" || m.method == "nuqsgd") {
        for (int j = -half; j <= half; ++j) {
            const double even = static_cast<double>(j) / half;
            const double power = j == 0 ? 0 : std::copysign(std::ldexp(1, std::abs(j) - half), j);
            table.push_back(rounded(m.method == "nuqsgd" ? power : even, m.levels_type()));
        }
        table.resize(m.num_levels, 1);
    }
    return table;
}

// fp4: the scale of each block, and how many values it has.
inline std::pair<std::vector<double>, uint64_t> fp4_scales(const Message& m) {
    const std::string& kind = m.texts.at("scale");
    const uint64_t preset = kind == "nvfp4" ? 16 : kind == "float32" ? 64 : 32;
    const uint64_t block = m.blocked ? m.block : std::min(m.size, preset), blocks = ceil_div(m.size, block);
    if (kind == "float32") {
        check_side(m, {{"scales", {m.levels_type(), blocks}}});
        for (double scale : side(m, "scales")) require(std::isfinite(scale) && scale >= 0, "side.scales must be finite and not negative");
        return {side(m, "scales"), block};
    }
    std::vector<double> scales;
    if (kind == "nvfp4") {
        check_side(m, {{"scales", {"uint8", blocks}}, {"global", {m.levels_type(), 1}}});
        const double unit = side(m, "global")[0];
        require(std::isfinite(unit) && unit > 0, "side.global must be finite and positive");
        for (double stored : side(m, "scales")) {
            const int byte = static_cast<int>(stored);
            require(byte <= 0x7e, "side.scales must be at most 126");
            const double number = byte < 8 ? std::ldexp(byte, -9) : std::ldexp(8 + (byte & 7), (byte >> 3) - 10);
            scales.push_back(std::min(number * unit, std::numeric_limits<double>::max()));
        }
        return {scales, block};
    }
    const bool shifted = m.side.count("shift") == 1;
    if (shifted) check_side(m, {{"scales", {"uint8", blocks}}, {"shift", {"int16", 1}}});
    else check_side(m, {{"scales", {"uint8", blocks}}});
    const int shift = shifted ? static_cast<int>(side(m, "shift")[0]) : 0;
    require(!shifted || shift != 0, "side.shift must not be 0");
    for (double stored : side(m, "scales")) {
        const int exponent = static_cast<int>(stored) - 127 + shift;
        require(stored <= 254, "side.scales must be at most 254");
        require(!shifted || (exponent >= -1074 && exponent <= 1023), "exponents with side.shift must be -1074..1023");
        scales.push_back(std::ldexp(1, exponent));
    }
    return {scales, block};
}

inline std::vector<double> pow2_values(const Message& m) {
    static const std::map<std::string, std::pair<int, int>> range = {
        {"float16", {-24, 15}}, {"bfloat16", {-128, 127}}, {"float32", {-128, 127}}, {"float64", {-1074, 1023}}};
    check_side(m, {{"tops", {m.dtype == "float64" ? "int16" : "int8", m.blocks()}}});
    const auto [low, high] = range.at(m.dtype);
    for (double top : side(m, "tops")) require(top >= low && top <= high, "side.tops out of range");
    const std::vector<uint8_t> codes = unpack(m.codes, m.size, m.bits, m.block);
    const int half = static_cast<int>(m.num_levels) / 2;
    std::vector<double> values(m.size);
    for (uint64_t i = 0; i < m.size; ++i) {
        const int step = codes[i] % half, top = static_cast<int>(side(m, "tops")[i / m.block]);
        const double size = step == 0 ? 0 : rounded(std::ldexp(1, step - (half - 1) + top), m.dtype);
        values[i] = (codes[i] < half ? size : -size) + 0.0;
    }
    return values;
}

inline std::vector<double> scheme_values(const Message& m) {
    const bool travels = m.method == "amq" || m.method == "alq";
    require(travels || m.levels.empty(), "levels must be empty: the method's table is fixed");
    if (m.method == "pow2") return pow2_values(m);
    if (m.method == "fp4") {
        const Table table = {0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6};
        const auto [scales, block] = fp4_scales(m);
        return products(m, unpack(m.codes, m.size, 4, block), table, scales, block);
    }
    check_side(m, {{"scales", {m.levels_type(), m.blocks()}}});
    for (double scale : side(m, "scales")) {
        require(std::isfinite(scale) && (scale >= 0 || m.method == "signed_binary"), "side.scales must be finite and not negative");
    }
    if (travels) {
        require(m.levels.size() == m.num_levels && m.levels.front() == -1 && m.levels.back() == 1, "levels must go from -1 to 1");
    }
    const bool ternary = m.method == "seq" && m.num_levels == 3;
    const auto codes = ternary ? trits(m.codes, m.size, m.block) : unpack(m.codes, m.size, m.bits, m.block);
    return products(m, codes, travels ? m.levels : table_of(m), side(m, "scales"), m.block);
}

inline std::vector<double> table_values(const Message& m) {
    std::vector<double> values(m.size);
    Table levels(m.levels.size());
    std::transform(m.levels.begin(), m.levels.end(), levels.begin(), [&](double level) { return rounded(level, m.dtype); });
    const std::vector<uint8_t> codes = unpack(m.codes, m.size, m.bits, m.block);
    std::array<std::uint32_t, 4> words = {};
    for (uint64_t i = 0; i < m.size; ++i) {
        require(codes[i] < m.num_levels, "a code points beyond the table");
        uint64_t row = i / m.block;
        if (m.level_sets > 0) {
            if (i % 4 == 0) words = philox(m.seed, i / 4, 3);
            row = uint64_t{m.level_sets} * words[i % 4] >> 32;
        }
        values[i] = levels[row * m.num_levels + codes[i]];
    }
    return values;
}

// Bytes of the payload, before entropy coding.
inline uint64_t payload_size(const Message& m) {
    if (m.method == "seq" && m.scheme && m.num_levels == 3) return trits_size(m.size, m.block);
    if (m.method != "fp4" || !m.scheme || m.blocked) return packed_size(m.size, m.bits, m.block);
    return ceil_div(m.size, 2); // Blocks of whole bytes.
}

} // namespace detail

// Read and decode one message. More than `max_values` values are refused before memory is taken.
inline Vector decode(const std::uint8_t* data, std::size_t size, std::uint64_t max_values = std::uint64_t{1} << 28) {
    using namespace detail;
    Message m = read(Bytes(data, size));
    require(m.size <= max_values, "shape must have at most " + std::to_string(max_values) + " values");
    const std::uint64_t expected = payload_size(m);
    require((m.entropy ? m.payload : m.codes.size()) == expected, "codes must have " + std::to_string(expected) + " bytes");
    std::vector<std::uint8_t> payload;
    if (m.entropy) {
        payload = m.coded_bytes ? symbols(m.codes, m.payload, 256) : pack(symbols(m.codes, m.size, 1u << m.bits), m.bits, m.block);
        m.codes = Bytes(payload.data(), payload.size());
    }
    Vector found{m.method, m.dtype, m.shape, m.seed, m.scheme ? scheme_values(m) : table_values(m)};
    if (m.scale) {
        for (double& value : found.values) value = rounded(value * *m.scale, m.dtype) + 0.0;
    }
    for (std::size_t i = 0; i < m.kept.size(); ++i) found.values[m.places[i]] = m.kept[i];
    return found;
}

} // namespace quiver
