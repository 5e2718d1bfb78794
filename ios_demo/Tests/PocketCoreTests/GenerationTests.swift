import XCTest

@testable import PocketCore

final class GenerationTests: XCTestCase {
    /// Writes 1, 2, 3, ... one after the other, whatever the prompt is.
    private func counting(context: Int = 64) -> ScriptedModel {
        ScriptedModel(context: context) { history in peak((history.last ?? 0) + 1) }
    }

    private func request(_ prompt: [Int], stop: Set<Int> = [5], most: Int = 20) -> Request {
        Request(promptTokens: prompt, sampling: Sampling(), maxNewTokens: most, stopTokens: stop)
    }

    private func pieces(_ model: ScriptedModel, _ request: Request, cached: inout [Int]) throws -> [Piece] {
        var pieces: [Piece] = []
        try generate(model, LetterTokenizer(), request, cached: &cached) { pieces.append($0) }
        return pieces
    }

    func testAnAnswerIsStreamedUntilAStopToken() throws {
        let model = counting()
        var cached: [Int] = []
        let pieces = try pieces(model, request([0, 1]), cached: &cached)
        XCTAssertEqual(pieces.map(\.token), [2, 3, 4, 5])
        XCTAssertEqual(pieces.map(\.text), ["b", "c", "d", ""])
        let end = try XCTUnwrap(pieces.last?.end)
        XCTAssertEqual(end.reason, .stop)
        XCTAssertEqual([end.timing.promptTokens, end.timing.cachedTokens, end.timing.generatedTokens], [2, 0, 4])
        XCTAssertEqual(model.calls, [2, 1, 1, 1])
        XCTAssertEqual(cached, [0, 1, 2, 3, 4])
        XCTAssertTrue(pieces.dropLast().allSatisfy { $0.end == nil })
    }

    func testEndsByLengthAndByContext() throws {
        var cached: [Int] = []
        let short = try pieces(counting(), request([0], most: 2), cached: &cached)
        XCTAssertEqual(short.last?.end?.reason, .length)
        XCTAssertEqual(short.compactMap(\.token), [1, 2])
        XCTAssertNil(short.last?.token)
        cached = []
        let full = try pieces(counting(context: 3), request([0]), cached: &cached)
        XCTAssertEqual(full.last?.end?.reason, .context)
        XCTAssertEqual(full.compactMap(\.token), [1, 2, 3])
    }

    func testOnlyWhatIsNewOfAPromptIsRun() throws {
        let model = counting()
        var cached: [Int] = []
        _ = try pieces(model, request([0, 1]), cached: &cached)
        let turn = try pieces(model, request(cached + [0, 1]), cached: &cached)
        XCTAssertEqual(turn.last?.end?.timing.cachedTokens, 5)
        XCTAssertEqual(model.calls, [2, 1, 1, 1, 2, 1, 1, 1])
        // The same prompt again: its last token must be run, and a model cannot take one back.
        _ = try pieces(model, request(cached), cached: &cached)
        XCTAssertEqual(model.calls.filter { $0 == -1 }.count, 1)
        // Another conversation.
        _ = try pieces(model, request([1, 1]), cached: &cached)
        XCTAssertEqual(model.calls.filter { $0 == -1 }.count, 2)
    }

    func testAFailedRunDoesNotPoisonTheCache() throws {
        var fails = true
        let model = ScriptedModel { history in
            if fails, history.count > 3 { throw PocketError("out of memory") }
            return peak((history.last ?? 0) + 1)
        }
        var cached: [Int] = []
        XCTAssertEqual(Fixtures.message { _ = try pieces(model, request([0, 1]), cached: &cached) }, "out of memory")
        fails = false
        let again = try pieces(model, request([0, 1, 2, 3]), cached: &cached)
        XCTAssertEqual(again.last?.end?.timing.cachedTokens, 0)
        XCTAssertEqual(again.compactMap(\.token), [4, 5])
    }

    func testPromptsThatCannotBeRunAreRefused() {
        var cached: [Int] = []
        let model = counting(context: 3)
        for (prompt, words) in [([], "empty"), ([0, 0, 0, 0], "the context holds 3"), ([8], "outside the vocabulary")] {
            let message = Fixtures.message { _ = try pieces(model, request(prompt), cached: &cached) }
            XCTAssertTrue(message.contains(words), message)
        }
        XCTAssertTrue(
            Fixtures.message { _ = try pieces(model, request([0], most: 0), cached: &cached) }.contains("at least 1"))
    }

    func testACharacterIsShownWhenItIsWhole() {
        var decoder = StreamDecoder(LetterTokenizer())
        XCTAssertEqual([1, 6, 7, 0, 2].map { decoder.add($0) }, ["a", "", "é", "", "b"])
        XCTAssertEqual(decoder.finish(), "")
        XCTAssertEqual(decoder.add(6), "")
        XCTAssertEqual(decoder.finish(), "\u{fffd}")
    }

    /// As SentencePiece's decoders do: every token brings a space, and a text has none at its start.
    private struct SpacedTokenizer: TextTokenizer {
        func encode(_ segments: [Segment]) throws -> [Int] { [] }
        func decode(_ tokens: [Int]) -> String { tokens.map(String.init).joined(separator: " ") }
        func hasText(_ token: Int) -> Bool { true }
        func isByte(_ token: Int) -> Bool { token == 9 }
    }

    func testOnlyTheFirstTokenLosesItsSpace() {
        var decoder = StreamDecoder(SpacedTokenizer())
        XCTAssertEqual([1, 2, 9, 9, 3].map { decoder.add($0) }, ["1", " 2", "", "", " 9 9 3"])
        XCTAssertEqual([4, 9].map { decoder.add($0) }, [" 4", ""])
        XCTAssertEqual(decoder.finish(), " 9")
    }

    func testTheEngineStreamsAndStops() async throws {
        let engine = Engine()
        var thrown: (any Error)?
        do {
            for try await _ in engine.answer(request([0]), LetterTokenizer()) {}
        } catch {
            thrown = error
        }
        XCTAssertEqual(PocketError.line(for: try XCTUnwrap(thrown)), "no model is loaded; choose a bundle")

        _ = try await engine.load { ScriptedModel { history in peak((history.last ?? 0) + 1) } }
        var text = ""
        for try await piece in engine.answer(request([0]), LetterTokenizer()) { text += piece.text }
        XCTAssertEqual(text, "abcd")

        _ = try await engine.load { ScriptedModel(context: 1 << 30) { _ in peak(1) } }
        var count = 0
        for try await _ in engine.answer(request([0], most: .max), LetterTokenizer()) {
            count += 1
            if count == 5 { break }
        }
        // If the model had not been stopped, this would never get its turn.
        await engine.unload()
    }
}
