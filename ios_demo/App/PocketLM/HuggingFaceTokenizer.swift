import Foundation
import Hub
import PocketCore
import Tokenizers

/// A bundle's tokenizer.json, run by huggingface/swift-transformers.
///
/// Two instances: one as the file is, and a twin whose control tokens have names that nobody can guess, so that
/// "<|im_end|>" in a message is text while the template's counts. They have the same ids. The idea is that of
/// runtimes/tokenizer.py, where its reasons are told.
struct HuggingFaceTokenizer: TextTokenizer {
    private let tokenizer: any Tokenizer
    private let twin: any Tokenizer
    /// Control token -> its name in the twin.
    private let aliases: [String: String]
    private let controlIds: Set<Int>
    private let specialIds: Set<Int>
    /// The byte that a token stands for, of tokenizers with byte fallback.
    private let bytes: [Int: UInt8]

    /// - Parameter control: the tokens that count in templates alone; if none, those that the file calls special.
    /// - Throws: PocketError for a kind of tokenizer that is not known; what the library throws for a damaged file.
    init(folder: URL, control: [String]) throws {
        let file = try HubApi.shared.configuration(fileURL: folder.appending(path: "tokenizer.json"))
        try Self.checkKinds(of: file)
        // What the post-processor adds to texts, templates here write themselves.
        let data = Self.changing(file, "post_processor", to: nil)
        let settings = Self.settings(for: data)
        let added = Self.addedTokens(of: data)
        specialIds = Set(added.filter(\.isSpecial).map(\.id))
        let names = Set(control.isEmpty ? added.filter(\.isSpecial).map(\.content) : control)
        let renamed = added.filter { names.contains($0.content) }
        controlIds = Set(renamed.map(\.id))
        let nonce = UUID().uuidString
        aliases = Dictionary(
            renamed.map { ($0.content, "\u{F0000}\(nonce).\($0.id)\u{F0001}") }, uniquingKeysWith: { first, _ in first }
        )
        tokenizer = try PreTrainedTokenizer(tokenizerConfig: settings, tokenizerData: data)
        twin = try PreTrainedTokenizer(tokenizerConfig: settings, tokenizerData: Self.renaming(data, aliases))
        bytes = Self.bytes(of: data)
    }

    func encode(_ segments: [Segment]) throws -> [Int] {
        let text = segments.map { $0.isTemplate ? renamed($0.text) : $0.text }.joined()
        // Not encode(text:): it traps on what the vocabulary lacks, and Roberta's processor adds tokens to every text.
        // Hugging Face's own library leaves out what has neither a token nor a byte.
        let tokens = twin.tokenize(text: text).compactMap { twin.convertTokenToId($0) }
        let written = segments.reduce(0) { $0 + ($1.isTemplate ? controlCount($1.text) : 0) }
        guard tokens.count(where: controlIds.contains) == written else {
            throw PocketError("this tokenizer cannot write a control token as plain text; take it out of the message")
        }
        return tokens
    }

    func decode(_ tokens: [Int]) -> String {
        let shown = tokens.filter { !specialIds.contains($0) }
        let text = shown.prefix(shown.count - shown.reversed().prefix { bytes[$0] != nil }.count)
        let last = shown.suffix(from: text.count).compactMap { bytes[$0] }
        // The library's decoder for byte fallback drops the bytes that end a text.
        let tail = String(validating: last, as: UTF8.self) ?? String(repeating: "\u{fffd}", count: last.count)
        return (text.isEmpty ? "" : tokenizer.decode(tokens: Array(text), skipSpecialTokens: true)) + tail
    }

    func hasText(_ token: Int) -> Bool {
        !specialIds.contains(token) && tokenizer.convertIdToToken(token) != nil
    }

    func isByte(_ token: Int) -> Bool {
        bytes[token] != nil
    }

    /// A template's text with the twin's names, the longest token first, as the library matches them.
    private func renamed(_ text: String) -> String {
        parts(of: text).map { aliases[$0] ?? $0 }.joined()
    }

    private func controlCount(_ text: String) -> Int {
        parts(of: text).count { aliases[$0] != nil }
    }

    /// The text cut at control tokens, which are parts of their own.
    private func parts(of text: String) -> [String] {
        let names = aliases.keys.sorted { $0.utf8.count > $1.utf8.count }
        var parts: [String] = []
        var plain = "".unicodeScalars
        var rest = Substring(text).unicodeScalars
        while let scalar = rest.first {
            if let name = names.first(where: { rest.starts(with: $0.unicodeScalars) }) {
                parts += [String(plain), name]
                plain = "".unicodeScalars
                rest = rest.dropFirst(name.unicodeScalars.count)
            } else {
                plain.append(scalar)
                rest = rest.dropFirst()
            }
        }
        return parts + [String(plain)]
    }

    private struct AddedToken {
        let id: Int
        let content: String
        let isSpecial: Bool
    }

    private static func addedTokens(of data: Config) -> [AddedToken] {
        data["added_tokens"].array(or: []).compactMap { entry in
            guard let id = entry["id"].integer(), let content = entry["content"].string() else { return nil }
            return AddedToken(id: id, content: content, isSpecial: entry["special"].boolean(or: false))
        }
    }

    /// The file with other names for its control tokens.
    private static func renaming(_ data: Config, _ aliases: [String: String]) -> Config {
        let tokens = data["added_tokens"].array(or: []).map { entry -> Config in
            guard let content = entry["content"].string(), let alias = aliases[content] else { return entry }
            var fields = entry.dictionary(or: [:])
            fields["content"] = Config(alias)
            return Config(fields)
        }
        return changing(data, "added_tokens", to: Config(tokens))
    }

    private static func changing(_ data: Config, _ name: BinaryDistinctString, to value: Config?) -> Config {
        var fields = data.dictionary(or: [:])
        fields[name] = value
        return Config(fields)
    }

    /// The library ends the app where it meets a part that it does not know: refuse such a file before.
    private static func checkKinds(of data: Config) throws {
        // Of Unigram the library forgets the added tokens, and so those that templates write.
        try checkKind(of: data["model"], "model", ["BPE"])
        try checkKind(
            of: data["normalizer"], "normalizer",
            [
                "Sequence", "Prepend", "Replace", "Lowercase", "NFD", "NFC", "NFKD", "NFKC", "Precompiled",
                "StripAccents", "Strip", "BertNormalizer",
            ])
        try checkKind(
            of: data["pre_tokenizer"], "pre-tokenizer",
            [
                "Sequence", "ByteLevel", "Punctuation", "Digits", "Split", "Whitespace", "WhitespaceSplit", "Metaspace",
                "BertPreTokenizer",
            ])
        try checkKind(
            of: data["decoder"], "decoder",
            ["Sequence", "WordPiece", "ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"])
    }

    private static func checkKind(of part: Config, _ name: String, _ known: Set<String>) throws {
        if let kind = part["type"].string(), !known.contains(kind) {
            throw PocketError("this app does not know the tokenizer's \(name) \(kind); use another model to chat")
        }
        for list: BinaryDistinctString in ["normalizers", "pretokenizers", "decoders"] {
            for inner in part[list].array(or: []) { try checkKind(of: inner, name, known) }
        }
    }

    /// What the library wants to know besides tokenizer.json. It must do what the file says, no more: the class decides
    /// which model reads it, and cleaning up spaces would change the text that Python decodes.
    private static func settings(for data: Config) -> Config {
        var settings: [BinaryDistinctString: Config] = [
            "tokenizer_class": Config("PreTrainedTokenizer"), "clean_up_tokenization_spaces": Config(false),
        ]
        if let unknown = data["model"]["unk_token"].string() { settings["unk_token"] = Config(unknown) }
        return Config(settings)
    }

    private static func bytes(of data: Config) -> [Int: UInt8] {
        let vocabulary = data["model"]["vocab"]
        let found = (0...UInt8.max).compactMap { byte -> (Int, UInt8)? in
            let digits = String(byte, radix: 16, uppercase: true)
            let name = BinaryDistinctString("<0x\(byte < 16 ? "0" : "")\(digits)>")
            return vocabulary[name].integer().map { ($0, byte) }
        }
        return Dictionary(found, uniquingKeysWith: { first, _ in first })
    }
}
