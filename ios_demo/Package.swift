// swift-tools-version: 6.0
import PackageDescription

// ExecuTorch's package holds binaries for Apple's systems: elsewhere its target compiles to nothing, and nothing has to
// be fetched to test PocketCore.
#if os(macOS)
    let executorchPackages: [Package.Dependency] = [
        .package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.4.1")
    ]
    let executorchProducts: [Target.Dependency] = [
        "executorch", "backend_xnnpack", "kernels_llm", "kernels_optimized", "kernels_quantized",
    ]
    .map { .product(name: $0, package: "executorch") }
#else
    let executorchPackages: [Package.Dependency] = []
    let executorchProducts: [Target.Dependency] = []
#endif

let package = Package(
    name: "Pocket",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [
        .library(name: "PocketCore", targets: ["PocketCore"]),
        .library(name: "PocketCoreML", targets: ["PocketCoreML"]),
        .library(name: "PocketExecuTorch", targets: ["PocketExecuTorch"]),
    ],
    dependencies: executorchPackages,
    targets: [
        .target(name: "PocketCore"),
        .target(name: "PocketCoreML", dependencies: ["PocketCore"]),
        .target(name: "PocketExecuTorch", dependencies: ["PocketCore"] + executorchProducts),
        .testTarget(name: "PocketCoreTests", dependencies: ["PocketCore"]),
    ],
    swiftLanguageModes: [.v6]
)
