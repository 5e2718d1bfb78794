import Foundation

/// The bundles in a folder, such as the app's Documents: what Finder, Files or `pocketlm device` have put there.
public struct BundleLibrary: Sendable {
    /// What a copy that is not finished is called: it has a leading dot, so that nobody takes it for a bundle.
    private static let partialPrefix = ".pocketlm-partial-"

    public let folder: URL

    public init(folder: URL) {
        self.folder = folder
    }

    /// What was found: bundles, and folders that look like bundles but cannot be used, with the reason.
    public struct Contents: Equatable, Sendable {
        public let bundles: [BundleFolder]
        public let unusable: [String]

        public init(bundles: [BundleFolder], unusable: [String]) {
            self.bundles = bundles
            self.unusable = unusable
        }
    }

    public func contents() throws -> Contents {
        let children = try FileManager.default.contentsOfDirectory(
            at: folder, includingPropertiesForKeys: [.isDirectoryKey], options: [.skipsHiddenFiles])
        var bundles: [BundleFolder] = []
        var unusable: [String] = []
        for child in children.sorted(by: { $0.lastPathComponent < $1.lastPathComponent }) {
            guard FileManager.default.fileExists(atPath: child.appending(path: Manifest.fileName).path) else {
                continue
            }
            do {
                bundles.append(try BundleFolder(child))
            } catch {
                unusable.append("\(child.lastPathComponent): \(PocketError.line(for: error))")
            }
        }
        return Contents(bundles: bundles, unusable: unusable)
    }

    /// A bundle by the name of its folder.
    public func bundle(named name: String) throws -> BundleFolder {
        guard !name.isEmpty, !name.contains("/"), !name.hasPrefix(".") else {
            throw PocketError("\(name.debugDescription) is not the name of a bundle")
        }
        return try BundleFolder(folder.appending(path: name, directoryHint: .isDirectory))
    }

    /// Copy a bundle in, check what was copied, and only then give it its name; what was there before is replaced.
    ///
    /// - Throws: PocketError if the source is no bundle, holds nothing that an iPhone runs, or a hash differs.
    @discardableResult
    public func importBundle(from source: URL, progress: (Double) -> Void = { _ in }) throws -> BundleFolder {
        let given = try BundleFolder(source)
        let targets = given.targets.filter { $0 != .onnx }
        guard !targets.isEmpty else {
            throw PocketError("\(source.lastPathComponent) holds nothing that an iPhone runs; export with --to coreml")
        }
        let files = FileManager.default
        let partial = folder.appending(path: Self.partialPrefix + UUID().uuidString, directoryHint: .isDirectory)
        defer { try? files.removeItem(at: partial) }
        let facts = files.fileExists(atPath: given.facts.path) ? [FactIndex.fileName] : []
        for path in Set(targets.flatMap { given.paths(for: $0) } + [Manifest.fileName] + facts).sorted() {
            try Task.checkCancellation()
            let destination = partial.appending(path: path)
            try files.createDirectory(at: destination.deletingLastPathComponent(), withIntermediateDirectories: true)
            try files.copyItem(at: source.appending(path: path), to: destination)
        }
        let copied = try BundleFolder(partial)
        for (index, target) in targets.enumerated() {
            try copied.check(target) { progress((Double(index) + $0) / Double(targets.count)) }
        }
        return try put(partial, under: source.lastPathComponent)
    }

    /// Remove what interrupted imports have left.
    public func removePartial() {
        let files = FileManager.default
        let children = (try? files.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)) ?? []
        for child in children where child.lastPathComponent.hasPrefix(Self.partialPrefix) {
            try? files.removeItem(at: child)
        }
    }

    /// Rename what was copied; an older bundle of the name stays until the new one is in its place.
    private func put(_ partial: URL, under name: String) throws -> BundleFolder {
        let files = FileManager.default
        let final = folder.appending(path: name, directoryHint: .isDirectory)
        let old = folder.appending(path: Self.partialPrefix + UUID().uuidString, directoryHint: .isDirectory)
        let replaces = files.fileExists(atPath: final.path)
        if replaces { try files.moveItem(at: final, to: old) }
        do {
            try files.moveItem(at: partial, to: final)
        } catch {
            if replaces { try? files.moveItem(at: old, to: final) }
            throw error
        }
        try? files.removeItem(at: old)
        return try BundleFolder(final)
    }
}
