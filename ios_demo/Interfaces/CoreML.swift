// What this package uses of Core ML, as developer.apple.com documents it.
import Foundation

public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { try body() }

public enum MLComputeUnits: Int, Sendable { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType: Int, Sendable { case double, float32, float16, int32 }
public final class MLCPUComputeDevice: Sendable {}
public final class MLGPUComputeDevice: Sendable {}
public final class MLNeuralEngineComputeDevice: Sendable {}
public enum MLComputeDevice: Sendable {
    case cpu(MLCPUComputeDevice)
    case gpu(MLGPUComputeDevice)
    case neuralEngine(MLNeuralEngineComputeDevice)
}

public class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public var functionName: String?
    public init() {}
}

public class MLMultiArray {
    public var shape: [NSNumber] { fatalError() }
    public var strides: [NSNumber] { fatalError() }
    public var dataType: MLMultiArrayDataType { fatalError() }
    public func withUnsafeBytes<R>(_ body: (UnsafeRawBufferPointer) throws -> R) rethrows -> R { fatalError() }
}

public protocol MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}
public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {}
}

public class MLFeatureValue {
    public convenience init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) { fatalError() }
    init() {}
    public var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    var featureNames: Set<String> { get }
    func featureValue(for featureName: String) -> MLFeatureValue?
}

public class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    public var featureNames: Set<String> { fatalError() }
    public func featureValue(for featureName: String) -> MLFeatureValue? { fatalError() }
}

public class MLMultiArrayConstraint { public var shape: [NSNumber] { fatalError() } }
public class MLFeatureDescription { public var multiArrayConstraint: MLMultiArrayConstraint? { fatalError() } }
public class MLModelDescription { public var inputDescriptionsByName: [String: MLFeatureDescription] { fatalError() } }
public class MLState {}

public class MLModel {
    public convenience init(contentsOf url: URL, configuration: MLModelConfiguration) throws { fatalError() }
    init() {}
    public class func compileModel(at url: URL) async throws -> URL { fatalError() }
    public var modelDescription: MLModelDescription { fatalError() }
    public func makeState() -> MLState { fatalError() }
    public func prediction(from input: any MLFeatureProvider, using state: MLState) throws -> any MLFeatureProvider {
        fatalError()
    }
}

public enum MLModelStructure: Sendable {
    case program(Program)
    case unsupported
    public struct Program: Sendable {
        public let functions: [String: Function]
        public struct Function: Sendable { public let block: Block }
        public struct Block: Sendable { public let operations: [Operation] }
        public struct Operation: Sendable { public let operatorName: String }
    }
}

public final class MLComputePlan {
    public struct DeviceUsage: Sendable { public let preferred: MLComputeDevice }
    public struct Cost: Sendable { public let weight: Double }
    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLComputePlan {
        fatalError()
    }
    public let modelStructure: MLModelStructure
    init(_ structure: MLModelStructure) { modelStructure = structure }
    public func deviceUsage(for operation: MLModelStructure.Program.Operation) -> DeviceUsage? { fatalError() }
    public func estimatedCost(of operation: MLModelStructure.Program.Operation) -> Cost? { fatalError() }
}
