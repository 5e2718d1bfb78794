import XCTest

@testable import PocketCore

final class BundleTests: XCTestCase {
    private struct Broken: Decodable {
        let name: String
        let manifest: JSONValue?
        let files: [String: String?]?
        let words: [String]
    }

    private func copyOfGoodBundle() throws -> URL {
        let folder = try Fixtures.temporaryFolder(self).appending(path: "tiny", directoryHint: .isDirectory)
        try FileManager.default.copyItem(at: Fixtures.golden.appending(path: "bundle/good"), to: folder)
        return folder
    }

    func testGoodBundle() throws {
        let bundle = try BundleFolder(copyOfGoodBundle())
        XCTAssertEqual(bundle.manifest.name, "tiny")
        XCTAssertEqual(bundle.targets, [.onnx])
        XCTAssertEqual(bundle.manifest.shape, ModelShape(vocabularySize: 607, cacheWidth: 2 * 2 * 2 * 16))
        XCTAssertFalse(bundle.manifest.isBlockwise)
        XCTAssertEqual(bundle.manifest.certificate.targets["onnx"]?.errors.map(\.name).first, "quantization")
        var shares: [Double] = []
        try bundle.check(.onnx) { shares.append($0) }
        XCTAssertEqual(shares.last, 1)
        XCTAssertEqual(shares, shares.sorted())
        XCTAssertEqual(try bundle.chatTurns().control.isEmpty, false)
        XCTAssertEqual(try bundle.golden().sequences.count, 2)
    }

    func testBrokenBundlesAreRefusedWithTheReason() throws {
        let all = try Fixtures.read([Broken].self, "bundle/broken.json")
        XCTAssertGreaterThan(all.count, 15)
        for broken in all {
            let folder = try copyOfGoodBundle()
            try damage(folder, broken)
            let message = Fixtures.message { try BundleFolder(folder).check(.onnx) }
            for word in broken.words { XCTAssertTrue(message.contains(word), "\(broken.name): \(message)") }
            XCTAssertFalse(message.contains("\n"), broken.name)
        }
    }

    private func damage(_ folder: URL, _ broken: Broken) throws {
        for (path, text) in broken.files ?? [:] {
            let file = folder.appending(path: path)
            if let text { try Data(text.utf8).write(to: file) } else { try FileManager.default.removeItem(at: file) }
        }
        if let patch = broken.manifest {
            let file = folder.appending(path: Manifest.fileName)
            let manifest = try JSONDecoder().decode(JSONValue.self, from: Data(contentsOf: file))
            try JSONEncoder().encode(manifest.patched(with: patch)).write(to: file)
        }
    }

    func testFilesOfOtherTargetsAreNotNeeded() throws {
        let folder = try copyOfGoodBundle()
        try FileManager.default.removeItem(at: folder.appending(path: "onnx"))
        let bundle = try BundleFolder(folder)
        XCTAssertEqual(bundle.targets, [])
        try bundle.check(.coreml)  // the shared files alone
    }

    func testLibraryListsBundlesAndWhyOthersCannotBeUsed() throws {
        let folder = try Fixtures.temporaryFolder(self)
        let good = Fixtures.golden.appending(path: "bundle/good")
        for name in ["b", "a", "bad"] {
            try FileManager.default.copyItem(at: good, to: folder.appending(path: name))
        }
        try Data("[]".utf8).write(to: folder.appending(path: "bad/pocketlm.json"))
        try FileManager.default.createDirectory(at: folder.appending(path: "other"), withIntermediateDirectories: true)
        let contents = try BundleLibrary(folder: folder).contents()
        XCTAssertEqual(contents.bundles.map(\.url.lastPathComponent), ["a", "b"])
        XCTAssertEqual(contents.unusable.count, 1)
        XCTAssertTrue(contents.unusable[0].hasPrefix("bad: "), contents.unusable[0])
        XCTAssertThrowsError(try BundleLibrary(folder: folder).bundle(named: "../a"))
    }

    /// A bundle with an artifact for iPhones; what it holds does not matter to an import.
    private func coreMLBundle() throws -> URL {
        let folder = try copyOfGoodBundle()
        let file = folder.appending(path: Manifest.fileName)
        var text = try String(contentsOf: file, encoding: .utf8)
        text = text.replacingOccurrences(of: "onnx/model.onnx", with: "coreml/model.mlpackage/Manifest.json")
        try Data(text.utf8).write(to: file)
        let package = folder.appending(path: "coreml/model.mlpackage", directoryHint: .isDirectory)
        try FileManager.default.createDirectory(at: package, withIntermediateDirectories: true)
        try FileManager.default.moveItem(
            at: folder.appending(path: "onnx/model.onnx"), to: package.appending(path: "Manifest.json"))
        return folder
    }

    func testImportCopiesChecksAndReplaces() throws {
        let source = try coreMLBundle()
        let library = BundleLibrary(folder: try Fixtures.temporaryFolder(self))
        XCTAssertEqual(try library.importBundle(from: source).targets, [.coreml])
        try Data("later".utf8).write(to: library.folder.appending(path: "tiny/extra"))
        let again = try library.importBundle(from: source)
        XCTAssertFalse(FileManager.default.fileExists(atPath: again.url.appending(path: "extra").path))
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: library.folder.path), ["tiny"])
        XCTAssertFalse(FileManager.default.fileExists(atPath: again.facts.path))
        try Data("facts".utf8).write(to: source.appending(path: "facts.db"))
        XCTAssertEqual(try Data(contentsOf: library.importBundle(from: source).facts), Data("facts".utf8))
    }

    func testADamagedImportLeavesWhatWasThere() throws {
        let source = try coreMLBundle()
        let library = BundleLibrary(folder: try Fixtures.temporaryFolder(self))
        try library.importBundle(from: source)
        try Data("{}".utf8).write(to: source.appending(path: "golden.json"))
        XCTAssertTrue(Fixtures.message { try library.importBundle(from: source) }.contains("golden.json"))
        try library.bundle(named: "tiny").check(.coreml)
        XCTAssertEqual(try FileManager.default.contentsOfDirectory(atPath: library.folder.path), ["tiny"])
        let onnxOnly = Fixtures.golden.appending(path: "bundle/good")
        XCTAssertTrue(
            Fixtures.message { try library.importBundle(from: onnxOnly) }.contains("nothing that an iPhone runs"))
    }

    func testShapesOfOtherFamilies() throws {
        for (config, cacheWidth) in [
            (#"{"vocab_size": 9, "n_layer": 12, "n_head": 12, "n_embd": 768}"#, 2 * 12 * 768),
            (
                #"{"vocab_size": 9, "num_transformer_layers": 3, "num_query_heads": [4, 8],"#
                    + #" "num_kv_heads": [1, 2], "head_dim": 64}"#,
                2 * 3 * 2 * 64
            ),
            (#"{"vocab_size": 9}"#, nil),
        ] as [(String, Int?)] {
            let shape = try JSONDecoder().decode(ModelShape.self, from: Data(config.utf8))
            XCTAssertEqual(shape, ModelShape(vocabularySize: 9, cacheWidth: cacheWidth))
        }
    }

    func testMemoryNeed() throws {
        let bundle = try BundleFolder(copyOfGoodBundle())
        let need = MemoryNeed(bundle, .coreml)
        XCTAssertEqual(need.cacheBytes, 2 * 2 * 2 * 16 * 128 * 2)
        XCTAssertEqual(MemoryNeed(bundle, .executorch).cacheBytes, 2 * need.cacheBytes)
        XCTAssertNoThrow(try need.check(availableBytes: need.bytes))
        let message = Fixtures.message { try need.check(availableBytes: need.bytes - 1) }
        XCTAssertTrue(message.contains("iOS allows"), message)
    }
}

/// Any JSON, to patch a manifest as RFC 7396 says.
enum JSONValue: Codable, Equatable {
    case null
    case bool(Bool)
    case number(Double)
    case string(String)
    case array([JSONValue])
    case object([String: JSONValue])

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if container.decodeNil() {
            self = .null
        } else if let value = try? container.decode(Bool.self) {
            self = .bool(value)
        } else if let value = try? container.decode(Double.self) {
            self = .number(value)
        } else if let value = try? container.decode(String.self) {
            self = .string(value)
        } else if let value = try? container.decode([JSONValue].self) {
            self = .array(value)
        } else {
            self = .object(try container.decode([String: JSONValue].self))
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        switch self {
        case .null: try container.encodeNil()
        case .bool(let value): try container.encode(value)
        case .number(let value):
            if let whole = Int(exactly: value) { try container.encode(whole) } else { try container.encode(value) }
        case .string(let value): try container.encode(value)
        case .array(let value): try container.encode(value)
        case .object(let value): try container.encode(value)
        }
    }

    /// A member of an object; null where there is none.
    subscript(_ key: String) -> JSONValue {
        if case .object(let members) = self { members[key] ?? .null } else { .null }
    }

    func patched(with patch: JSONValue) -> JSONValue {
        guard case .object(let changes) = patch else { return patch }
        var result: [String: JSONValue] = [:]
        if case .object(let own) = self { result = own }
        for (key, change) in changes {
            result[key] = change == .null ? nil : (result[key] ?? .null).patched(with: change)
        }
        return .object(result)
    }
}
