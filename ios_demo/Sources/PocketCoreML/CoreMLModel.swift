#if canImport(CoreML)
    import CoreML
    import Foundation
    import PocketCore

    /// A conversation with a package of pocketlm: prompts in chunks of the function `prefill`, then token by token with
    /// `decode`. Both functions work on one state, the KV cache. See "Core ML" in docs/architecture.md, and
    /// runtimes/coreml_session.py, which feeds a package the same way.
    public final class CoreMLModel: LanguageModel {
        /// Names of export/apple.py.
        private enum Name {
            static let tokens = "inputIds"
            static let position = "position"
            static let logitsIndex = "logitsIndex"
            static let logits = "logits"
        }

        /// A cache has room for the context rounded up to this many tokens (export/apple.py).
        private static let slotMultiple = 32

        public let context: Int
        public let vocabularySize: Int
        public private(set) var position = 0

        private let decode: MLModel
        private let prefill: MLModel
        private let chunk: Int
        private let slots: Int
        private var state: MLState

        /// Load a compiled package.
        ///
        /// - Parameter units: what Core ML may use; ``computeUnits(for:)`` says what a bundle's weights want.
        /// - Throws: PocketError for a package that Core ML cannot load, or that pocketlm has not written.
        public init(compiled: URL, manifest: Manifest, units: MLComputeUnits) throws {
            context = manifest.context
            vocabularySize = manifest.shape.vocabularySize
            slots = (manifest.context + Self.slotMultiple - 1) / Self.slotMultiple * Self.slotMultiple
            decode = try Self.load(compiled, function: "decode", units)
            prefill = try Self.load(compiled, function: "prefill", units)
            let inputs = prefill.modelDescription.inputDescriptionsByName
            guard let shape = inputs[Name.tokens]?.multiArrayConstraint?.shape, shape.count == 2 else {
                throw PocketError("the package's function prefill takes no \(Name.tokens); export the model again")
            }
            chunk = shape[1].intValue
            state = decode.makeState()
        }

        /// Scales for blocks of columns do not run on the Neural Engine: such weights ask for the GPU.
        public static func computeUnits(for manifest: Manifest) -> MLComputeUnits {
            manifest.isBlockwise ? .cpuAndGPU : .all
        }

        private static func load(_ compiled: URL, function: String, _ units: MLComputeUnits) throws -> MLModel {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = function
            do {
                return try MLModel(contentsOf: compiled, configuration: configuration)
            } catch {
                throw PocketError(
                    "Core ML cannot load the function \(function) (\(PocketError.line(for: error))); "
                        + "export the model again, with fixed functions")
            }
        }

        public func reset() {
            state = decode.makeState()
            position = 0
        }

        public func run(_ tokens: [Int]) throws -> [Float] {
            try check(tokens)
            var left = tokens[...]
            while true {
                let (taken, logits) = try autoreleasepool { try step(left) }
                position += taken
                left = left.dropFirst(taken)
                if left.isEmpty { return logits }
                try Task.checkCancellation()
            }
        }

        /// Run what fits into one call; how many tokens that was, and the logits behind the last of them.
        ///
        /// Padding is written behind the tokens, where nobody looks before it is overwritten; but a chunk that would
        /// reach over the end of the cache has no place to write to, so the last tokens of a context go one by one.
        private func step(_ tokens: ArraySlice<Int>) throws -> (Int, [Float]) {
            if tokens.count > 1, position + chunk <= slots {
                let taken = tokens.prefix(chunk)
                let padded = taken.map(Int32.init) + Array(repeating: 0, count: chunk - taken.count)
                let logits = try call(prefill, padded, extra: [Name.logitsIndex: [Int32(taken.count - 1)]])
                return (taken.count, logits)
            }
            return (1, try call(decode, tokens.prefix(1).map(Int32.init), extra: [:]))
        }

        private func call(_ model: MLModel, _ tokens: [Int32], extra: [String: [Int32]]) throws -> [Float] {
            var features: [String: MLFeatureValue] = [
                Name.tokens: MLFeatureValue(shapedArray: MLShapedArray(scalars: tokens, shape: [1, tokens.count])),
                Name.position: MLFeatureValue(shapedArray: MLShapedArray(scalars: [Int32(position)], shape: [1])),
            ]
            for (name, values) in extra {
                features[name] = MLFeatureValue(shapedArray: MLShapedArray(scalars: values, shape: [values.count]))
            }
            let input = try MLDictionaryFeatureProvider(dictionary: features)
            let output = try model.prediction(from: input, using: state)
            guard let logits = output.featureValue(for: Name.logits)?.multiArrayValue else {
                throw PocketError("the package gave no \(Name.logits); export the model again")
            }
            return try lastRow(logits)
        }

        /// The last row of an array (1, rows, vocabulary), whatever its precision and its strides are.
        private func lastRow(_ array: MLMultiArray) throws -> [Float] {
            let shape = array.shape.map(\.intValue)
            let strides = array.strides.map(\.intValue)
            guard shape.count == 3, shape[2] == vocabularySize else {
                throw PocketError("the package's logits have the shape \(shape), not (1, 1, \(vocabularySize))")
            }
            let start = (shape[1] - 1) * strides[1]
            let type = array.dataType
            return try array.withUnsafeBytes { bytes in
                switch type {
                case .float16:
                    let halves = bytes.bindMemory(to: UInt16.self)
                    return (0..<shape[2]).map { float(half: halves[start + $0 * strides[2]]) }
                case .float32:
                    let floats = bytes.bindMemory(to: Float.self)
                    return (0..<shape[2]).map { floats[start + $0 * strides[2]] }
                default:
                    throw PocketError("the package's logits are no floating-point numbers; export the model again")
                }
            }
        }
    }
#endif
