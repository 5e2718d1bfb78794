// What the app uses of huggingface/swift-transformers' module Tokenizers, version 1.3.3.
import Foundation
import Hub

public typealias Message = [String: any Sendable]

public protocol Tokenizer: Sendable {
    func tokenize(text: String) -> [String]
    func convertTokenToId(_ token: String) -> Int?
    func decode(tokens: [Int], skipSpecialTokens: Bool) -> String
    func convertIdToToken(_ id: Int) -> String?
}

public class PreTrainedTokenizer: @unchecked Sendable, Tokenizer {
    public required init(tokenizerConfig: Config, tokenizerData: Config, strict: Bool = true) throws {}
    public func tokenize(text: String) -> [String] { fatalError() }
    public func convertTokenToId(_ token: String) -> Int? { fatalError() }
    public func decode(tokens: [Int], skipSpecialTokens: Bool = false) -> String { fatalError() }
    public func convertIdToToken(_ id: Int) -> String? { fatalError() }
}
