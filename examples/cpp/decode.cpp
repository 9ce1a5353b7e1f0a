// Decode a quantized-vector message: decode FILE, or decode - for standard input.
//
//     g++ -std=c++17 -O2 -o decode decode.cpp
//     ./decode vector.msgpack > vector.f32
//
// The values go to standard output, little-endian: float64 where the vector was, else float32. What they are is told on standard
// error. Exit status 1: not a message that can be decoded; 2: wrong arguments, or a file that cannot be read; 3: an unknown method.
#include "quiver_decode.hpp"

#include <cstdio>
#include <iostream>
#include <memory>

namespace {

std::vector<std::uint8_t> contents(const std::string& name) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> opened(name == "-" ? nullptr : std::fopen(name.c_str(), "rb"),
                                                                 [](std::FILE* file) { return file ? std::fclose(file) : 0; });
    std::FILE* file = name == "-" ? stdin : opened.get();
    if (file == nullptr) throw std::runtime_error("cannot open " + name);
    std::vector<std::uint8_t> found;
    std::array<std::uint8_t, 65536> part;
    while (const std::size_t count = std::fread(part.data(), 1, part.size(), file)) found.insert(found.end(), part.begin(), part.begin() + count);
    if (std::ferror(file)) throw std::runtime_error("cannot read " + name);
    return found;
}

template <class Number, class Word>
void write(const std::vector<double>& values) {
    for (double value : values) {
        const auto number = static_cast<Number>(value);
        Word word;
        std::memcpy(&word, &number, sizeof word);
        for (std::size_t i = 0; i < sizeof word; ++i) std::putchar(static_cast<int>(word >> (8 * i) & 255));
    }
}

} // namespace

int main(int count, char** arguments) {
    if (count != 2) {
        std::cerr << "usage: decode FILE (or - for standard input)\n";
        return 2;
    }
    std::vector<std::uint8_t> message;
    try {
        message = contents(arguments[1]);
    } catch (const std::runtime_error& error) {
        std::cerr << error.what() << "\n";
        return 2;
    }
    try {
        const quiver::Vector vector = quiver::decode(message.data(), message.size());
        std::cerr << vector.method << ", " << vector.values.size() << " values of " << vector.dtype << ", seed " << vector.seed << "\n";
        if (vector.dtype == "float64") write<double, std::uint64_t>(vector.values);
        else write<float, std::uint32_t>(vector.values);
    } catch (const quiver::Unsupported& error) {
        std::cerr << error.what() << "\n";
        return 3;
    } catch (const quiver::Error& error) {
        std::cerr << "not a message that can be decoded: " << error.what() << "\n";
        return 1;
    }
    return std::fflush(stdout) == 0 ? 0 : 2;
}
