#if canImport(CoreML)
    import CoreML
    import Foundation
    import PocketCore

    extension ComputePlan {
        /// Ask Core ML where it would run each operation of a compiled package. This takes about as long as loading it.
        public static func load(compiled: URL, function: String, units: MLComputeUnits) async throws -> ComputePlan {
            let configuration = MLModelConfiguration()
            configuration.computeUnits = units
            configuration.functionName = function
            let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
            guard case .program(let program) = plan.modelStructure, let main = program.functions[function] else {
                throw PocketError("the package has no function \(function); export the model again")
            }
            let operations = main.block.operations.compactMap { operation -> Operation? in
                guard let usage = plan.deviceUsage(for: operation) else { return nil }  // constants run nowhere
                return Operation(
                    name: operation.operatorName, device: device(usage.preferred),
                    cost: plan.estimatedCost(of: operation)?.weight ?? 0)
            }
            return ComputePlan(function: function, operations: operations)
        }

        private static func device(_ device: MLComputeDevice) -> Device {
            switch device {
            case .cpu: .cpu
            case .gpu: .gpu
            case .neuralEngine: .neuralEngine
            @unknown default: .cpu
            }
        }
    }
#endif
