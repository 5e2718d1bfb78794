import Foundation
import XCTest

@testable import PocketCore

/// The files that Python writes for the tests of all languages: tests/golden, used in place, never copied.
enum Fixtures {
    static let golden = URL(filePath: #filePath).deletingLastPathComponent()
        .appending(path: "../../../tests/golden").standardized

    static func read<Content: Decodable>(_ type: Content.Type, _ path: String) throws -> Content {
        try JSONDecoder().decode(type, from: Data(contentsOf: golden.appending(path: path)))
    }

    /// A sum of rows [seed, scale], each scale * (u - 0.5) for the numbers u of that seed.
    static func logits(_ rows: [[Double]], count: Int) -> [Float] {
        var total = [Double](repeating: 0, count: count)
        for row in rows {
            var random = UniformNumbers(seed: UInt64(row[0]))
            for index in total.indices { total[index] += row[1] * (random.next() - 0.5) }
        }
        return total.map(Float.init)
    }

    /// A folder that is removed when the test ends.
    static func temporaryFolder(_ test: XCTestCase) throws -> URL {
        let url = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString, directoryHint: .isDirectory)
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        test.addTeardownBlock { try? FileManager.default.removeItem(at: url) }
        return url
    }

    /// The message of the PocketError that must be thrown.
    static func message(of body: () throws -> Void, file: StaticString = #filePath, line: UInt = #line) -> String {
        do {
            try body()
        } catch let error as PocketError {
            return error.message
        } catch {
            XCTFail("threw \(error), which is no PocketError", file: file, line: line)
            return ""
        }
        XCTFail("did not throw", file: file, line: line)
        return ""
    }
}

/// A model that gives logits as told: ``logits`` gets all tokens so far.
final class ScriptedModel: LanguageModel {
    let context: Int
    let vocabularySize: Int
    private(set) var history: [Int] = []
    /// How many tokens each call brought, and -1 for each reset.
    private(set) var calls: [Int] = []
    private let logits: ([Int]) throws -> [Float]

    init(context: Int = 64, vocabularySize: Int = 8, logits: @escaping ([Int]) throws -> [Float]) {
        self.context = context
        self.vocabularySize = vocabularySize
        self.logits = logits
    }

    var position: Int { history.count }

    func run(_ tokens: [Int]) throws -> [Float] {
        try check(tokens)
        calls.append(tokens.count)
        history += tokens
        return try logits(history)
    }

    func reset() {
        calls.append(-1)
        history = []
    }
}

/// Token 0 is control, 1...5 are "a"..."e", 6 and 7 are the two halves of "é"; nothing else is text.
struct LetterTokenizer: TextTokenizer {
    func encode(_ segments: [Segment]) throws -> [Int] {
        segments.flatMap { segment in
            segment.isTemplate ? [0] : segment.text.unicodeScalars.map { Int($0.value) - 96 }
        }
    }

    func decode(_ tokens: [Int]) -> String {
        let bytes: [[UInt8]] = [[], [97], [98], [99], [100], [101], [0xC3], [0xA9]]
        return String(decoding: tokens.flatMap { bytes[$0] }, as: UTF8.self)
    }

    func hasText(_ token: Int) -> Bool { token > 0 && token < 8 }
    func isByte(_ token: Int) -> Bool { false }
}

/// Logits with one token far above all others.
func peak(_ token: Int, of count: Int = 8) -> [Float] {
    (0..<count).map { $0 == token ? 10 : 0 }
}
