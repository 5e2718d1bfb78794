// What the app uses of the system, as developer.apple.com and Darwin's headers document it.
public func os_proc_available_memory() -> Int { fatalError() }
public let RUSAGE_SELF: Int32 = 0  // elsewhere it has another type
