import PocketCore
import XCTest

@testable import PocketLM

/// swift-transformers against the token ids that Hugging Face's own library gives (tests/golden of the repository).
/// The fixtures are read where they are: run this in a simulator, which sees the Mac's files.
final class TokenizerTests: XCTestCase {
    private struct Corpus: Decodable {
        struct Entry: Decodable {
            let name: String
            let text: String
        }
        let texts: [Entry]
    }

    private struct Expected: Decodable {
        struct Case: Decodable {
            let name: String
            /// Ids where no control token counts; nil if the tokenizer cannot write one as plain text.
            let user: [Int]?
            /// Ids where all count, if they are others.
            let template: [Int]?
            /// The text of ``user``, if it is another than the text.
            let decoded: String?
        }
        struct Stream: Decodable {
            let tokens: [Int]
            let pieces: [String]
        }
        let tokenizer: String
        let cases: [Case]
        let streams: [Stream]
    }

    private struct Chats: Decodable {
        struct Case: Decodable {
            let messages: [Message]
            let ids: [Int]
        }
        let tokenizer: String
        let template: String
        let turns: ChatTurns
        let cases: [Case]
    }

    private let golden = URL(filePath: #filePath).deletingLastPathComponent()
        .appending(path: "../../../tests/golden").standardized

    private func read<Content: Decodable>(_ type: Content.Type, _ name: String) throws -> Content {
        try JSONDecoder().decode(type, from: Data(contentsOf: golden.appending(path: name)))
    }

    /// A bundle's folder has its tokenizer under this one name.
    private func tokenizer(_ file: String, control: [String]) throws -> HuggingFaceTokenizer {
        let folder = FileManager.default.temporaryDirectory.appending(path: UUID().uuidString)
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try FileManager.default.copyItem(
            at: golden.appending(path: file), to: folder.appending(path: "tokenizer.json"))
        return try HuggingFaceTokenizer(folder: folder, control: control)
    }

    private func corpus() throws -> [String: String] {
        let entries = try read(Corpus.self, "awkward.json").texts
        return Dictionary(uniqueKeysWithValues: entries.map { ($0.name, $0.text) })
    }

    private func check(_ expected: Expected, _ tokenizer: HuggingFaceTokenizer) throws {
        let texts = try corpus()
        for wanted in expected.cases {
            let text = try XCTUnwrap(texts[wanted.name])
            let user = try? tokenizer.encode([Segment(text: text, isTemplate: false)])
            XCTAssertEqual(user, wanted.user, "\(expected.tokenizer), as text: \(wanted.name)")
            let template = try? tokenizer.encode([Segment(text: text, isTemplate: true)])
            XCTAssertEqual(template, wanted.template ?? wanted.user, "\(expected.tokenizer), control: \(wanted.name)")
            guard let ids = wanted.user else { continue }
            let decoded = wanted.decoded ?? text
            XCTAssertTrue(
                tokenizer.decode(ids).unicodeScalars.elementsEqual(decoded.unicodeScalars),
                "\(expected.tokenizer), decoded: \(wanted.name)")
        }
        for stream in expected.streams {
            var decoder = StreamDecoder(tokenizer)
            let pieces = stream.tokens.map { decoder.add($0) } + [decoder.finish()]
            XCTAssertEqual(pieces.joined(), stream.pieces.joined(), "\(expected.tokenizer), \(stream.tokens)")
        }
    }

    func testByteLevelTokenizers() throws {
        let all = try read([String: Expected].self, "awkward_ids.json")
        for name in ["byte_level", "smollm2", "llama_3"] {
            let expected = try XCTUnwrap(all[name])
            try check(expected, tokenizer(expected.tokenizer, control: []))
        }
    }

    func testSentencePieceTokenizers() throws {
        let all = try read([String: Expected].self, "awkward_ids.json")
        for name in ["llama_2", "metaspace", "gemma"] {
            let expected = try XCTUnwrap(all[name])
            try check(expected, tokenizer(expected.tokenizer, control: []))
        }
    }

    func testConversations() throws {
        let today = Day(Date(timeIntervalSince1970: 1_738_324_800))  // 31 January 2025
        for chats in try read([Chats].self, "chat_ids.json") {
            let tokenizer = try tokenizer(chats.tokenizer, control: chats.turns.control)
            for wanted in chats.cases {
                let ids = try? tokenizer.encode(chats.turns.segments(wanted.messages, today: today))
                XCTAssertEqual(ids, wanted.ids, "\(chats.tokenizer), \(wanted.messages)")
            }
        }
    }
}
