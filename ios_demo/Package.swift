// swift-tools-version: 6.0
import PackageDescription

// ExecuTorch's package holds binaries for Apple's systems: elsewhere its target compiles to nothing, and nothing has to
// be fetched to test PocketCore.
//
// Apple's SDKs have a module of SQLite; elsewhere it is made from the header (Debian: libsqlite3-dev).
#if os(macOS)
    let sqliteTargets: [Target] = []
    let sqlite: [Target.Dependency] = []
    let executorchPackages: [Package.Dependency] = [
        .package(url: "https://github.com/pytorch/executorch.git", branch: "swiftpm-1.4.1")
    ]
    let executorchProducts: [Target.Dependency] = [
        "executorch", "backend_xnnpack", "kernels_llm", "kernels_optimized", "kernels_quantized",
    ]
    .map { .product(name: $0, package: "executorch") }
#else
    let sqliteTargets: [Target] = [
        .systemLibrary(name: "CSQLite", providers: [.apt(["libsqlite3-dev"])])
    ]
    let sqlite: [Target.Dependency] = ["CSQLite"]
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
        .target(name: "PocketCore", dependencies: sqlite),
        .target(name: "PocketCoreML", dependencies: ["PocketCore"]),
        .target(name: "PocketExecuTorch", dependencies: ["PocketCore"] + executorchProducts),
        .testTarget(name: "PocketCoreTests", dependencies: ["PocketCore"] + sqlite),
    ] + sqliteTargets,
    swiftLanguageModes: [.v6]
)
