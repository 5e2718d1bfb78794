import Foundation

/// One file of a bundle.
public struct FileEntry: Codable, Equatable, Sendable {
    public let sizeBytes: Int
    /// In hexadecimal.
    public let sha256: String

    public init(sizeBytes: Int, sha256: String) {
        self.sizeBytes = sizeBytes
        self.sha256 = sha256
    }

    enum CodingKeys: String, CodingKey {
        case sizeBytes = "size_bytes"
        case sha256
    }
}

/// What an app needs of pocketlm.json.
public struct Manifest: Decodable, Equatable, Sendable {
    public static let fileName = "pocketlm.json"
    public static let schemaVersion = 1

    /// The version of pocketlm that wrote the bundle.
    public let pocketlm: String
    public let name: String
    /// Tokens that every artifact's cache holds.
    public let context: Int
    /// Ids that end an answer.
    public let stopTokens: [Int]
    public let licence: String?
    public let recipe: Recipe
    /// What could not be done at export and why, a line each.
    public let notes: [String]
    /// Path in the bundle, with forward slashes.
    public let files: [String: FileEntry]
    public let shape: ModelShape
    public let certificate: Certificate
    /// Whether any weight has several scales in a row. The Neural Engine has no such weights, so that the GPU is asked
    /// instead (package_metadata in export/apple.py says the same in the package itself).
    public let isBlockwise: Bool

    public struct Recipe: Decodable, Equatable, Sendable {
        public let name: String
    }

    enum CodingKeys: String, CodingKey {
        case schemaVersion = "schema_version"
        case pocketlm, name, context, licence, recipe, notes, files, certificate
        case weights
        case stopTokens = "stop_tokens"
        case shape = "config"
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        try Self.checkVersion(container)
        pocketlm = try container.decode(String.self, forKey: .pocketlm)
        name = try container.decode(String.self, forKey: .name)
        context = try container.decode(Int.self, forKey: .context)
        stopTokens = try container.decode([Int].self, forKey: .stopTokens)
        licence = try container.decodeIfPresent(String.self, forKey: .licence)
        recipe = try container.decode(Recipe.self, forKey: .recipe)
        notes = try container.decode([String].self, forKey: .notes)
        files = try container.decode([String: FileEntry].self, forKey: .files)
        shape = try container.decode(ModelShape.self, forKey: .shape)
        certificate = try container.decode(Certificate.self, forKey: .certificate)
        let weights = try container.decode([String: Fingerprint].self, forKey: .weights)
        isBlockwise = weights.values.contains(where: \.isBlockwise)
        try check()
    }

    private static func checkVersion(_ container: KeyedDecodingContainer<CodingKeys>) throws {
        let number = try? container.decode(Int.self, forKey: .schemaVersion)
        if let number, (1...schemaVersion).contains(number) { return }
        let found = try number.map(String.init) ?? container.decode(String.self, forKey: .schemaVersion)
        throw PocketError(
            "\(fileName) has schema version \(found), this app reads up to \(schemaVersion); update the app")
    }

    private func check() throws {
        for path in files.keys.sorted() where !Self.isInside(path) {
            throw PocketError("\(Self.fileName): file name \(path.debugDescription) leaves the bundle")
        }
        guard context > 0, !stopTokens.isEmpty else {
            throw PocketError("\(Self.fileName) names no context or no stop tokens; export the model again")
        }
        guard !targets.isEmpty else {
            throw PocketError("\(Self.fileName): the bundle holds no artifact; export again with --to")
        }
    }

    /// Whether a path stays in the folder that it is appended to.
    private static func isInside(_ path: String) -> Bool {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        return !path.contains("\\") && parts.allSatisfy { !$0.isEmpty && $0 != "." && $0 != ".." }
    }

    /// The artifacts that the bundle was exported with.
    public var targets: [Target] {
        Target.allCases.filter { target in files.keys.contains { $0.hasPrefix("\(target.rawValue)/") } }
    }
}

/// What identifies a canonical tensor; its format is "int4 g32 576x1536" or, where it is not quantised, "float16 576".
private struct Fingerprint: Decodable {
    let format: String

    var isBlockwise: Bool {
        let words = format.split(separator: " ")
        guard words.count == 3, words[1].hasPrefix("g"), let group = Int(words[1].dropFirst()) else { return false }
        return words[2].split(separator: "x").last.flatMap { Int($0) }.map { group < $0 } ?? false
    }
}

/// The kinds of artifact, by the name of their folder.
public enum Target: String, Codable, CaseIterable, Sendable {
    case onnx, executorch, coreml
}

/// The measures of config.json that an app needs. Families have other names for them (export/families.py), and some
/// have a list, a number for each layer: the largest counts, as all layers of a cache have one shape.
public struct ModelShape: Decodable, Equatable, Sendable {
    public let vocabularySize: Int
    /// Numbers that the cache keeps of each token, keys and values of all layers; nil where config.json does not say.
    public let cacheWidth: Int?

    public init(vocabularySize: Int, cacheWidth: Int?) {
        self.vocabularySize = vocabularySize
        self.cacheWidth = cacheWidth
    }

    private struct Name: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }

        init(stringValue: String) {
            self.stringValue = stringValue
        }

        init?(intValue: Int) { nil }
    }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: Name.self)
        func number(_ names: String...) -> Int? {
            for name in names.map(Name.init(stringValue:)) {
                if let value = try? container.decode(Int.self, forKey: name) { return value }
                if let largest = try? container.decode([Int].self, forKey: name).max() { return largest }
            }
            return nil
        }
        vocabularySize = try container.decode(Int.self, forKey: Name(stringValue: "vocab_size"))
        guard let layers = number("num_hidden_layers", "n_layer", "num_transformer_layers"),
            let heads = number("num_attention_heads", "n_head", "num_query_heads"), heads > 0,
            let width = number("head_dim") ?? number("hidden_size", "n_embd", "model_dim").map({ $0 / heads })
        else {
            cacheWidth = nil
            return
        }
        cacheWidth = 2 * layers * (number("num_key_value_heads", "num_kv_heads") ?? heads) * width
    }
}
