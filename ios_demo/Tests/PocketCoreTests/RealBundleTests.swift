import XCTest

@testable import PocketCore

/// On a bundle that `pocketlm export` made, named by the environment's POCKETLM_BUNDLE.
final class RealBundleTests: XCTestCase {
    private func bundle() throws -> BundleFolder {
        guard let path = ProcessInfo.processInfo.environment["POCKETLM_BUNDLE"], !path.isEmpty else {
            throw XCTSkip("POCKETLM_BUNDLE names no bundle")
        }
        return try BundleFolder(URL(filePath: path, directoryHint: .isDirectory))
    }

    func testTheManifestDescribesTheBundle() throws {
        let bundle = try bundle()
        XCTAssertFalse(bundle.targets.isEmpty)
        for target in bundle.targets {
            XCTAssertEqual(bundle.manifest.certificate.targets[target.rawValue]?.passed, true)
            XCTAssertGreaterThan(MemoryNeed(bundle, target).weightBytes, 1_000_000)
        }
        // Unoptimised code hashes 2 MB a second: the weights are left to Python's tests.
        let small = bundle.manifest.files.filter { !$0.key.contains("/") }
        XCTAssertGreaterThan(small.count, 4)
        for (path, entry) in small {
            XCTAssertEqual(try sha256(of: bundle.url.appending(path: path)), entry.sha256, path)
        }
    }

    /// What a phone does, but that the logits are taken from the golden file itself: the listed tokens have theirs, and
    /// the others share what is left of the whole.
    func testTheGoldenFileAgreesWithItself() throws {
        let bundle = try bundle()
        let golden = try bundle.golden()
        for target in bundle.targets {
            let expected = try XCTUnwrap(golden.targets[target.rawValue]).expected
            let size = bundle.manifest.shape.vocabularySize
            let model = ScriptedModel(context: bundle.manifest.context, vocabularySize: size) { history in
                let sequence = try XCTUnwrap(golden.sequences.firstIndex { $0.tokens.starts(with: history) })
                let index = history.count - 1 - golden.first
                return index < 0 ? [Float](repeating: 0, count: size) : Self.logits(expected[sequence][index], size)
            }
            let found = try verify(model, golden, target)
            XCTAssertTrue(found.passed, found.summary)
            XCTAssertEqual(found.top1, 1)
        }
    }

    private static func logits(_ position: Golden.Position, _ size: Int) -> [Float] {
        let listed = position.logits.reduce(0) { $0 + exp($1 - position.logSumExp) }
        let rest = log(max(1e-30, 1 - listed) / Double(size - position.ids.count)) + position.logSumExp
        var logits = [Float](repeating: Float(rest), count: size)
        for (id, logit) in zip(position.ids, position.logits) { logits[id] = Float(logit) }
        return logits
    }

    func testAPromptIsRendered() throws {
        let bundle = try bundle()
        let segments = try bundle.chatTurns().segments([Message(.user, "Hello")], today: Day(Date()))
        XCTAssertEqual(segments.filter { !$0.isTemplate }.map(\.text), ["Hello"])
        XCTAssertGreaterThanOrEqual(segments.count, 3)
    }
}
