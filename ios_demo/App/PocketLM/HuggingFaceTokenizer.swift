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
    private let byteIds: Set<Int>

    /// - Parameter control: the tokens that count in templates alone; if none, those that the file calls special.
    /// - Throws: PocketError for a kind of tokenizer that is not known; what the library throws for a damaged file.
    init(folder: URL, control: [String]) throws {
        let data = try HubApi.shared.configuration(fileURL: folder.appending(path: "tokenizer.json"))
        let settings = try Self.settings(for: data)
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
        byteIds = Self.byteIds(of: data)
    }

    func encode(_ segments: [Segment]) throws -> [Int] {
        let text = segments.map { $0.isTemplate ? renamed($0.text) : $0.text }.joined()
        let tokens = twin.encode(text: text, addSpecialTokens: false)
        let written = segments.reduce(0) { $0 + ($1.isTemplate ? controlCount($1.text) : 0) }
        guard tokens.count(where: controlIds.contains) == written else {
            throw PocketError("this tokenizer cannot write a control token as plain text; take it out of the message")
        }
        return tokens
    }

    func decode(_ tokens: [Int]) -> String {
        tokens.isEmpty ? "" : tokenizer.decode(tokens: tokens, skipSpecialTokens: true)
    }

    func hasText(_ token: Int) -> Bool {
        !specialIds.contains(token) && tokenizer.convertIdToToken(token) != nil
    }

    func isByte(_ token: Int) -> Bool {
        byteIds.contains(token)
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
        var fields = data.dictionary(or: [:])
        fields["added_tokens"] = Config(tokens)
        return Config(fields)
    }

    /// What the library wants to know besides tokenizer.json. It must do what the file says, no more: the class decides
    /// which model reads it, and cleaning up spaces would change the text that Python decodes.
    private static func settings(for data: Config) throws -> Config {
        let names = ["BPE": "PreTrainedTokenizer", "Unigram": "XLMRobertaTokenizer"]
        let kind = data["model"]["type"].string(or: "none")
        guard let name = names[kind] else {
            throw PocketError(
                "a tokenizer of the kind \(kind) is not known to this app; use a model with BPE or Unigram")
        }
        var settings: [BinaryDistinctString: Config] = [
            "tokenizer_class": Config(name), "clean_up_tokenization_spaces": Config(false),
        ]
        if let unknown = data["model"]["unk_token"].string() { settings["unk_token"] = Config(unknown) }
        return Config(settings)
    }

    private static func byteIds(of data: Config) -> Set<Int> {
        let vocabulary = data["model"]["vocab"]
        return Set(
            (0..<256).compactMap { byte in
                let digits = String(byte, radix: 16, uppercase: true)
                return vocabulary[BinaryDistinctString("<0x\(byte < 16 ? "0" : "")\(digits)>")].integer()
            })
    }
}
