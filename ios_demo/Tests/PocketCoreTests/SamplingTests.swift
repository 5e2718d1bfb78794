import XCTest

@testable import PocketCore

final class SamplingTests: XCTestCase {
    private struct File: Decodable {
        let firstUniforms: [Double]
        let logits: [[Float]]
        let cases: [Case]
        let large: Large

        enum CodingKeys: String, CodingKey {
            case logits, cases, large
            case firstUniforms = "first_uniforms_of_seed_0"
        }
    }

    private struct Case: Decodable {
        let sampling: Sampling
        let history: [Int]
        let tokens: [Int]
    }

    private struct Large: Decodable {
        let vocabularySize: Int
        let rows: [[[Double]]]
        let cases: [Case]

        enum CodingKeys: String, CodingKey {
            case rows, cases
            case vocabularySize = "vocab_size"
        }
    }

    private func file() throws -> File {
        try Fixtures.read(File.self, "sampling.json")
    }

    func testUniformNumbersArePythons() throws {
        var random = UniformNumbers(seed: 0)
        for expected in try file().firstUniforms { XCTAssertEqual(random.next(), expected) }
    }

    func testDrawsArePythons() throws {
        let file = try file()
        XCTAssertGreaterThan(file.cases.count, 10)
        for drawn in file.cases { try check(drawn, file.logits) }
    }

    func testDrawsFromLargeVocabulariesArePythons() throws {
        let large = try file().large
        let logits = large.rows.map { Fixtures.logits($0, count: large.vocabularySize) }
        for drawn in large.cases { try check(drawn, logits) }
    }

    private func check(_ drawn: Case, _ logits: [[Float]]) throws {
        var sampler = try Sampler(drawn.sampling)
        var history = drawn.history
        for row in logits { history.append(try sampler.next(row, history: history)) }
        XCTAssertEqual(Array(history.dropFirst(drawn.history.count)), drawn.tokens, "\(drawn.sampling)")
    }

    /// The shortcut for large vocabularies must not change what is drawn: here it covers too little, and just enough.
    func testFlatAndPeakedLogitsOfALargeVocabulary() throws {
        var sampler = try Sampler(Sampling(temperature: 1, seed: 3))
        var random = UniformNumbers(seed: 3)
        let flat = [Float](repeating: 1, count: 3000)
        for _ in 0..<20 {
            XCTAssertEqual(try sampler.next(flat, history: []), Int(random.next() * 3000))
        }
        XCTAssertEqual(try sampler.next(peak(2999, of: 3000).map { $0 * 9 }, history: []), 2999)
    }

    func testTheRepetitionPenaltyMakesATokenLessLikelyWhateverItsSign() throws {
        var sampler = try Sampler(Sampling(repetitionPenalty: 2))
        XCTAssertEqual(try sampler.next([2, 1.5], history: [0, 0, 7]), 1)
        XCTAssertEqual(try sampler.next([-1, -1.5], history: [0]), 1)
        XCTAssertEqual(try sampler.next([-1, -1.5], history: [1]), 0)
    }

    func testQuickselectAgreesWithSorting() {
        var random = UniformNumbers(seed: 1)
        for count in [1, 2, 3, 10, 257] {
            let values = (0..<count).map { _ in (random.next() * 20).rounded() }
            let sorted = values.sorted(by: >)
            for rank in 1...count { XCTAssertEqual(largestValue(values, rank: rank), sorted[rank - 1]) }
        }
    }

    func testLogitsThatAreNoNumbersAreRefused() throws {
        var sampler = try Sampler(Sampling())
        for bad in [Float.nan, .infinity] {
            XCTAssertTrue(Fixtures.message { _ = try sampler.next([0, bad, 1], history: []) }.contains("not finite"))
        }
        XCTAssertTrue(Fixtures.message { _ = try sampler.next([-.infinity], history: []) }.contains("not finite"))
        XCTAssertEqual(try sampler.next([-.infinity, 1], history: []), 1)
    }

    func testSettingsOutsideTheirRangeAreRefused() {
        for bad in [
            Sampling(temperature: -1), Sampling(temperature: .nan), Sampling(topK: -1), Sampling(topP: 0),
            Sampling(topP: 1.1), Sampling(minP: -0.1), Sampling(repetitionPenalty: 0),
        ] {
            XCTAssertFalse(Fixtures.message { _ = try Sampler(bad) }.isEmpty)
        }
    }
}
