/// A loaded artifact with its KV cache: one conversation of one user. What every runtime offers.
///
/// Not Sendable on purpose: a model belongs to the actor that opened it.
public protocol LanguageModel: AnyObject {
    /// Tokens that the cache holds.
    var context: Int { get }
    /// Width of the logits.
    var vocabularySize: Int { get }
    /// Tokens in the cache now.
    var position: Int { get }
    /// Append tokens to the conversation; the logits behind the last one.
    ///
    /// - Throws: PocketError when the cache would overflow, there is no token, or one lies outside the vocabulary.
    func run(_ tokens: [Int]) throws -> [Float]
    /// Forget the conversation.
    func reset() throws
}

extension LanguageModel {
    /// Throw a PocketError unless the model can take these tokens now.
    public func check(_ tokens: [Int]) throws {
        guard let smallest = tokens.min(), let largest = tokens.max() else {
            throw PocketError("there are no tokens to run; the prompt is empty")
        }
        guard position + tokens.count <= context else {
            throw PocketError(
                "\(position + tokens.count) tokens do not fit the context of \(context); "
                    + "shorten the conversation or export with a larger --context")
        }
        guard smallest >= 0, largest < vocabularySize else {
            throw PocketError("a token id lies outside the vocabulary of \(vocabularySize)")
        }
    }
}
