/** The part of the Job DSL that our jobs use: every call is recorded, one that is not known is an error. */
class Jobs {
    static final Set<String> KNOWN = [
        'displayName', 'description', 'branchSources', 'git', 'id', 'remote', 'credentialsId', 'includes', 'factory',
        'workflowBranchProjectFactory', 'scriptPath', 'orphanedItemStrategy', 'discardOldItems', 'numToKeep', 'triggers',
        'periodicFolderTrigger', 'interval',
    ]

    static List<Map> read(String path, Map environment) {
        List<Map> jobs = []
        Binding binding = new Binding(environment)
        binding.setVariable('multibranchPipelineJob', { String name, Closure block -> jobs << [name: name, settings: Jobs.record(block)] })
        new GroovyShell(Jobs.classLoader, binding).evaluate(new File(path))
        return jobs
    }

    static Map record(Closure block) {
        Map settings = [:]
        block.delegate = new Recorder(settings: settings)
        block.resolveStrategy = Closure.DELEGATE_FIRST
        block.call()
        return settings
    }

    static class Recorder {
        Map settings
        Object invokeMethod(String name, Object arguments) {
            if (!(name in KNOWN) || arguments.size() != 1) throw new NotAllowed("job: '${name}' is not known here")
            settings[name] = arguments[0] instanceof Closure ? Jobs.record(arguments[0]) : arguments[0].toString()
        }
    }
}
