#if canImport(ExecuTorch)
    import ExecuTorch
    import Foundation
    import PocketCore

    /// A conversation with a model.pte; the program keeps its cache in its own memory. It is fed as
    /// runtimes/executorch_session.py feeds it.
    public final class ExecuTorchModel: LanguageModel {
        private static let file = "model.pte"
        private static let forward = "forward"
        /// More in one call would take more working memory and be no faster (runtimes/executorch_session.py).
        private static let prefillTokens = 512

        public let context: Int
        public let vocabularySize: Int
        public private(set) var position = 0

        private let module: Module
        /// Tokens that one call takes at most.
        private let most: Int

        /// Load ``folder``/model.pte with its weights mapped, not copied.
        ///
        /// - Throws: PocketError for a program that is missing or not pocketlm's; ExecuTorch's own errors.
        public init(folder: URL) throws {
            let path = folder.appending(path: Self.file).path
            guard FileManager.default.fileExists(atPath: path) else {
                throw PocketError("\(Self.file) is missing; export the model again with --to executorch")
            }
            module = Module(filePath: path, loadMode: .mmap)
            try module.load(Self.forward)
            context = try Self.ask(module, "get_max_context_len")
            most = min(try Self.ask(module, "get_max_seq_len"), Self.prefillTokens)
            vocabularySize = try Self.ask(module, "get_vocab_size")
        }

        private static func ask(_ module: Module, _ name: String) throws -> Int {
            let answer: Int = try module.execute(name)
            guard answer > 0 else {
                throw PocketError("\(Self.file) says \(answer) for \(name); export the model again")
            }
            return answer
        }

        /// What is left in the cache is never looked at.
        public func reset() {
            position = 0
        }

        public func run(_ tokens: [Int]) throws -> [Float] {
            try check(tokens)
            var left = tokens[...]
            while true {
                let taken = Array(left.prefix(most))
                let logits = try autoreleasepool { try call(taken) }
                position += taken.count
                left = left.dropFirst(taken.count)
                if left.isEmpty { return logits }
                try Task.checkCancellation()
            }
        }

        private func call(_ tokens: [Int]) throws -> [Float] {
            let ids = Tensor<Int64>(tokens.map(Int64.init), shape: [1, tokens.count])
            let start = Tensor<Int64>([Int64(position)], shape: [1])
            let output: Tensor<Float> = try module.forward(ids, start)
            let logits = output.scalars()
            guard logits.count >= vocabularySize else {
                throw PocketError("\(Self.file) gave \(logits.count) logits instead of \(vocabularySize); export again")
            }
            return logits.count == vocabularySize ? logits : Array(logits.suffix(vocabularySize))
        }
    }
#endif
