// agree CORPUS: what the decoder says of every case of tests/js/corpus.py. A line for each disagreement; then one with the counts.
#include "quiver_decode.hpp"

#include <fstream>
#include <iostream>
#include <iterator>

int main(int, char** arguments) {
    std::ifstream file(arguments[1], std::ios::binary);
    const std::vector<char> raw((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const quiver::detail::Bytes all(reinterpret_cast<const std::uint8_t*>(raw.data()), raw.size());
    std::size_t at = 0, cases = 0, accepted = 0, unsupported = 0, wrong = 0;
    const auto number = [&](std::size_t width) { at += width; return quiver::detail::little(all, at - width, width); };
    const auto tell = [&](const std::string& what) { ++wrong; std::cout << "case " << cases << ": " << what << "\n"; };
    for (; at < all.size(); ++cases) {
        const std::size_t length = number(4);
        // A copy of its own, so that reading beyond its end is seen.
        const std::vector<std::uint8_t> message(all.begin() + at, all.begin() + at + length);
        at += length;
        const auto verdict = number(1);
        std::vector<double> wanted(verdict == 1 ? number(4) : 0);
        for (double& value : wanted) {
            const auto word = number(8);
            std::memcpy(&value, &word, sizeof value);
        }
        try {
            const std::vector<double> values = quiver::decode(message.data(), message.size(), 1 << 20).values;
            ++accepted;
            const bool same = values.size() == wanted.size() && std::memcmp(values.data(), wanted.data(), 8 * values.size()) == 0;
            if (verdict == 0) tell("it was accepted, and should not be");
            if (verdict == 1 && !same) tell("it has other values");
        } catch (const quiver::Unsupported&) {
            ++unsupported;
        } catch (const quiver::Error& error) {
            if (verdict == 1) tell(std::string("it was refused, and should not be: ") + error.what());
        }
    }
    std::cout << cases << " cases, " << accepted << " accepted, " << unsupported << " unsupported, " << wrong << " wrong\n";
    return 0;
}
