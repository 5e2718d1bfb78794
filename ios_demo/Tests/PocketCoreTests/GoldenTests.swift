import XCTest

@testable import PocketCore

final class GoldenTests: XCTestCase {
    private struct File: Decodable {
        let vocabularySize: Int
        let cases: [Case]

        enum CodingKeys: String, CodingKey {
            case cases
            case vocabularySize = "vocab_size"
        }
    }

    private struct Case: Decodable {
        let name: String
        /// Per sequence, per kept position, the rows that its logits are made of.
        let rows: [[[[Double]]]]
        let kl: Double
        let passes: Bool
    }

    private func golden() throws -> Golden {
        try BundleFolder(Fixtures.golden.appending(path: "bundle/good")).golden()
    }

    /// Gives the case's logits behind the kept positions of each sequence, and refuses anything but a faithful replay.
    private func model(_ replayed: Case, _ golden: Golden, count: Int) -> ScriptedModel {
        ScriptedModel(context: 64, vocabularySize: count) { history in
            let sequence = try XCTUnwrap(golden.sequences.firstIndex { $0.tokens.starts(with: history) })
            let position = history.count - 1 - golden.first
            return position < 0
                ? [Float](repeating: 0, count: count) : Fixtures.logits(replayed.rows[sequence][position], count: count)
        }
    }

    func testReplaysHavePythonsKL() throws {
        let file = try Fixtures.read(File.self, "replay.json")
        let golden = try golden()
        for replayed in file.cases {
            let model = model(replayed, golden, count: file.vocabularySize)
            let found = try verify(model, golden, .onnx)
            // The sums are taken in another order, so that 1e-6 is about what remains of values near zero.
            XCTAssertEqual(
                try XCTUnwrap(found.kl), replayed.kl, accuracy: 1e-9 + 1e-6 * abs(replayed.kl), replayed.name)
            XCTAssertEqual(found.passed, replayed.passes, replayed.name)
            let fed = [-1, golden.prefill] + Array(repeating: 1, count: 24 - golden.prefill)
            XCTAssertEqual(model.calls, fed + fed)
        }
        XCTAssertEqual(Set(file.cases.map(\.passes)), [true, false])
    }

    func testTop1AndProgress() throws {
        let file = try Fixtures.read(File.self, "replay.json")
        let golden = try golden()
        var shares: [Double] = []
        let same = try verify(model(file.cases[0], golden, count: file.vocabularySize), golden, .onnx) {
            shares.append($0)
        }
        XCTAssertEqual(same.top1, 1)
        XCTAssertEqual(same.positions, 8)
        XCTAssertEqual(shares, [0.5, 1])
        XCTAssertTrue(same.summary.hasPrefix("Passed: KL "), same.summary)
    }

    func testLogitsThatAreNoNumbersFail() throws {
        let broken = ScriptedModel(vocabularySize: 607) { _ in [Float](repeating: .nan, count: 607) }
        let found = try verify(broken, golden(), .onnx)
        XCTAssertFalse(found.passed)
        XCTAssertNil(found.kl)
        XCTAssertNoThrow(try JSONFile.encode(found))  // JSON has no infinity
    }

    func testAGoldenFileOfAnotherTargetOrShapeIsRefused() throws {
        let golden = try golden()
        let model = ScriptedModel(vocabularySize: 607) { _ in [] }
        XCTAssertTrue(Fixtures.message { _ = try verify(model, golden, .coreml) }.contains("nothing for coreml"))
        XCTAssertTrue(Fixtures.message { try golden.check(vocabularySize: 10) }.contains("outside the vocabulary"))
        let short = """
            {"schema_version":1,"prefill":3,"first":2,"targets":{},
            "sequences":[{"prompt":"","tokens":[1,2],"continuation":""}]}
            """
        let damaged = try JSONDecoder().decode(Golden.self, from: Data(short.utf8))
        XCTAssertTrue(Fixtures.message { try damaged.check(vocabularySize: 10) }.contains("too short"))
    }
}
