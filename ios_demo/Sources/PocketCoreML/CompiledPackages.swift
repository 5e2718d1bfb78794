#if canImport(CoreML)
    import CoreML
    import Foundation
    import PocketCore

    /// Keeps compiled packages, so that a phone compiles each bundle once. Compiled models are the system's own format:
    /// they live in Caches, where the system may remove them.
    public struct CompiledPackages: Sendable {
        private static let package = "model.mlpackage"

        private let folder: URL

        public init(folder: URL) {
            self.folder = folder
        }

        /// The compiled package of a bundle, and the seconds that compiling took, nil if it was there.
        public func compiled(_ bundle: BundleFolder) async throws -> (url: URL, seconds: Double?) {
            let files = FileManager.default
            let final = folder.appending(path: try key(of: bundle) + ".mlmodelc", directoryHint: .isDirectory)
            if files.fileExists(atPath: final.path) { return (final, nil) }
            let clock = ContinuousClock()
            let started = clock.now
            let source = bundle.folder(of: .coreml).appending(path: Self.package, directoryHint: .isDirectory)
            let temporary = try await MLModel.compileModel(at: source)
            try files.createDirectory(at: folder, withIntermediateDirectories: true)
            try files.moveItem(at: temporary, to: final)
            return (final, (clock.now - started).seconds)
        }

        /// What the package holds, in few letters, and the system that compiled it.
        private func key(of bundle: BundleFolder) throws -> String {
            let prefix = "\(Target.coreml.rawValue)/"
            let hashes = bundle.manifest.files.filter { $0.key.hasPrefix(prefix) }.sorted { $0.key < $1.key }
            guard !hashes.isEmpty else {
                throw PocketError("this bundle has no Core ML package; export with --to coreml")
            }
            let system = ProcessInfo.processInfo.operatingSystemVersion
            let version = "\(system.majorVersion).\(system.minorVersion).\(system.patchVersion)"
            return (hashes.map { String($0.value.sha256.prefix(16)) } + [version]).joined(separator: "-")
        }
    }
#endif
